"""Forecast: all steps of the horizon at once. Shapes: B rows, L lookback, Z horizon, N targets, Q quantiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batch import Batch
from models.families import check_choice
from models.frontends.patches import last_seen
from models.options import check_least, check_share
from models.pooling import last_step
from models.sequence import Baseline, SequenceModel, Sums, Task, full, mean

Loss = Literal["mse", "mae", "huber", "quantile"]
Head = Literal["last", "flatten"]

READS = ("series",)


class Forecast(Task):
    """A linear head over the family's last step, or over all of them, in units of the scaled targets.

    Metrics, over every row, step and target: ``mse``, ``mae`` in scaled units (training standard deviations);
    ``smape`` in percent, 200 |y - f| / (|y| + |f|), in raw units (Makridakis et al. 2020); ``mase``, the absolute error
    over the training error of the seasonal naive method (Hyndman & Koehler 2006), targets without one left out;
    with quantiles ``quantile_loss`` (mean pinball loss) and ``coverage`` (share inside the outermost quantiles).
    """

    primary = "mse"

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, horizon: int, loss: Loss,
                 quantiles: list[float], head: Head, dropout: float) -> None:
        super().__init__()
        check_choice("loss", loss, get_args(Loss), "task")
        check_choice("head", head, get_args(Head), "task")
        check_share("task.dropout", dropout)
        levels = sorted(quantiles) if loss == "quantile" else [0.5]
        if 0.5 not in levels or not all(0 < q < 1 for q in levels):
            raise ValueError(f"task.quantiles={quantiles} must lie between 0 and 1 and hold 0.5, the point forecast")
        self.horizon, self.targets, self.kind, self.flatten = horizon, spec["targets"], loss, head == "flatten"
        self.season, self.sequences, self.observed = spec["season"], encoder["sequences"], spec["observed"]
        self.backward = encoder["backward"]
        if self.flatten and encoder["steps"] is None:
            raise ValueError("task.head='flatten' needs rows of one length; use 'last'")
        self.levels: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.middle = levels.index(0.5)
        self.primary = "mae" if loss in ("mae", "quantile") else "mse"
        width = encoder["size"] * (encoder["steps"] if self.flatten else 1)
        each = self.targets // self.sequences                    # targets that one sequence forecasts
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, horizon * each * len(levels))
        self.known = nn.Linear(spec["known"], each) if spec["known"] else None

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Forecasts (B, Z, N, Q) in scaled units, float32; quantiles in rising order."""
        encoded = model.encode(batch)
        rows, n, q = len(batch.weights), self.targets, len(self.levels)
        windows = encoded.y                                                      # never padded
        y = windows.flatten(1) if self.flatten else last_step(windows, None, backward=self.backward)
        out: Tensor = full(self.head(self.dropout(y)))                           # (B*S, Z*E*Q)
        out = out.reshape(rows, self.sequences, self.horizon, n // self.sequences, q)
        out = out.transpose(1, 2).reshape(rows, self.horizon, n, q)              # targets: sequence by sequence
        if self.known is not None:
            effect = full(self.known(batch.inputs["known"]))                    # (B, Z, E)
            out = out + effect.repeat(1, 1, self.sequences)[..., None]
        if q > 1:
            out = out.sort(-1).values                                            # crossed quantiles uncrossed
        spread, shift = encoded.context["spread"], encoded.context["shift"]      # (B, N)
        return out * spread[:, None, :, None] + shift[:, None, :, None]

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Rows, each times the share of its targets that was measured."""
        seen = batch.targets.get("observed")
        return (batch.weights if seen is None else batch.weights * seen.mean((1, 2))).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x mean loss over steps and targets that were measured, sum of weights)."""
        return self._loss(self.outputs(model, batch), batch), self.weight(model, batch)

    def _loss(self, out: Tensor, batch: Batch) -> Tensor:
        target = batch.targets["target"][..., None].expand_as(out)               # (B, Z, N, Q)
        if self.kind == "mse":
            each = F.mse_loss(out, target, reduction="none")
        elif self.kind == "mae":
            each = F.l1_loss(out, target, reduction="none")
        elif self.kind == "huber":
            each = F.huber_loss(out, target, reduction="none")
        else:
            each = pinball(out, target, self.levels)
        seen = batch.targets.get("observed")
        each = each.mean(-1) if seen is None else each.mean(-1) * seen
        return (each.mean((1, 2)) * batch.weights).sum()

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        out = self.outputs(model, batch)
        sums = errors(out[..., self.middle], batch)
        sums["loss"] = mean(self._loss(out, batch), self.weight(model, batch))
        if len(self.levels) > 1:
            target = batch.targets["target"]
            inside = (target >= out[..., 0]) & (target <= out[..., -1])
            each = pinball(out, target[..., None].expand_as(out), self.levels).mean(-1)
            sums["quantile_loss"] = _total(each, batch)
            sums["coverage"] = _total(inside.float(), batch)
        return sums

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """forecast (B, Z, N) and quantiles (B, Z, N, Q), in scaled units."""
        out = self.outputs(model, batch)
        return {"forecast": out[..., self.middle], "quantiles": out}

    def fitted_baselines(self) -> list[Baseline]:
        """A linear model; none where steps are missing, which least squares would read as values."""
        return [] if self.observed else [Linear(self.targets)]

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """naive repeats the last value, seasonal_naive the last season (where the lookback holds one)."""
        values, n = batch.inputs["values"], self.targets
        own = values[..., :n]
        seen = values[..., -n:] if "observed" in batch.targets else None
        last = own[:, -1] if seen is None else last_seen(own, seen)              # (B, N)
        found = {"naive": errors(last[:, None].expand(-1, self.horizon, -1), batch)}
        if 1 < self.season <= own.shape[1]:
            phase = torch.arange(self.horizon, device=own.device) % self.season
            tail = own[:, -self.season:]
            if seen is not None:                                                 # a gap: the last value instead
                tail = torch.where(seen[:, -self.season:] > 0, tail, last[:, None])
            found["seasonal_naive"] = errors(tail[:, phase], batch)
        return found


class Linear(Baseline):
    """One linear map from the lookback to the horizon, for all targets, after subtracting the last value.

    The closed form of NLinear (Zeng et al. 2023, "Are Transformers Effective for Time Series Forecasting?"): least
    squares with a small ridge, from the sums of X^T X and X^T Y over all training windows.
    """

    name = "linear"

    def __init__(self, targets: int) -> None:
        self.targets = targets
        self.map: Tensor | None = None

    def moments(self, batch: Batch) -> Tensor:
        """(L + 1, L + 1 + Z) float64: what this batch adds to X^T [X Y]."""
        x, y, _ = self._split(batch)
        keep = batch.weights.repeat_interleave(self.targets).double()[:, None]
        both = torch.cat([x, y], 1) * keep
        return x.T @ both

    def fit(self, moments: Tensor) -> None:
        size = moments.shape[0]
        gram = moments[:, :size]
        ridge = 1e-6 * gram.diagonal().mean().clamp(min=1e-12)
        self.map = torch.linalg.solve(gram + ridge * torch.eye(size, dtype=gram.dtype, device=gram.device),
                                      moments[:, size:])

    def metrics(self, batch: Batch) -> Sums:
        assert self.map is not None
        x, _, last = self._split(batch)
        rows = len(batch.weights)
        out = (x @ self.map).reshape(rows, self.targets, -1).transpose(1, 2) + last[:, None]
        return errors(out.float(), batch)

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x (B*N, L + 1), y (B*N, Z), each less the last value (B, N), float64."""
        own = batch.inputs["values"][..., :self.targets].double()
        last = own[:, -1]
        x = (own - last[:, None]).transpose(1, 2).flatten(0, 1)
        y = (batch.targets["target"].double() - last[:, None]).transpose(1, 2).flatten(0, 1)
        return torch.cat([x, torch.ones_like(x[:, :1])], 1), y, last


def pinball(out: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """The quantile loss of Koenker & Bassett (1978) for each level: max(q e, (q - 1) e) with e = target - out."""
    error = target - out
    return torch.maximum(levels * error, (levels - 1) * error)


def errors(out: Tensor, batch: Batch) -> Sums:
    """mse, mae, smape, mase of point forecasts out (B, Z, N) in scaled units."""
    target, mean, std = (batch.targets[k] for k in ("target", "mean", "std"))
    error = out - target
    raw, want = out * std[:, None] + mean[:, None], target * std[:, None] + mean[:, None]
    gap = (error * std[:, None]).abs()                  # not raw - want, which loses digits far from 0
    smape = 200 * gap / (raw.abs() + want.abs()).clamp(min=1e-9)
    sums = {"mse": _total(error.square(), batch), "mae": _total(error.abs(), batch), "smape": _total(smape, batch)}
    unit = batch.targets["mase"][:, None]                                        # (B, 1, N) raw units, 0: none
    scaled = gap / unit.clamp(min=1e-9)
    sums["mase"] = _total(torch.where(unit > 0, scaled, 0), batch, (unit > 0).float())
    return sums


def _total(each: Tensor, batch: Batch, also: Tensor | None = None) -> Tensor:
    """(sum, count) of each (B, Z, N) over the rows with weight and the targets that were measured."""
    keep = batch.weights[:, None, None].expand_as(each)
    if "observed" in batch.targets:
        keep = keep * batch.targets["observed"]
    if also is not None:
        keep = keep * also
    return mean((each * keep).sum(dtype=torch.float64), keep.sum(dtype=torch.float64))


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, lookback: int = 336, horizon: int = 96,
          stride: int = 1, loss: Loss = "mse", quantiles: list[float] = [0.1, 0.5, 0.9], head: Head = "last",  # noqa: B006
          dropout: float = 0.0) -> Task:
    """Forecast every step of the horizon from the lookback.

    Args:
        lookback: steps that the model sees.
        horizon: steps that it forecasts.
        stride: steps between the starts of training windows, counted from the end of the training rows; evaluation
            always takes every window.
        loss: mse, mae, huber (quadratic up to an error of 1), or quantile (the mean pinball loss of `quantiles`).
        quantiles: levels forecast with loss quantile; 0.5, the point forecast, must be one of them.
        head: what the linear head reads: last (the family's last step; of a direction that reads backward, its first)
            or flatten (all steps).
        dropout: probability that an input of the head is dropped.
    """
    for key, value in {"lookback": lookback, "horizon": horizon, "stride": stride}.items():
        check_least(f"task.{key}", value, 1)
    return Forecast(spec, encoder, horizon=horizon, loss=loss, quantiles=quantiles, head=head, dropout=dropout)

