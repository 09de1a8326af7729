"""Forecast: all steps of the horizon at once. Shapes: B rows, L lookback, Z horizon, N targets, Q quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batch import Batch
from models.family import check_choice
from models.frontends.patches import last_seen
from models.options import check_least, check_share
from models.pooling import last_step
from models.sequence import Artifact, Baseline, Columns, SequenceModel, Sums, Task, full, mean

Loss = Literal["mse", "mae", "huber", "quantile"]
Head = Literal["last", "flatten"]

TARGETS = ("series",)


class Forecast(Task):
    """A linear head on the family's last step, or on all of them, in units of the scaled targets.

    Metrics, over every row, step and target: ``mse``, ``mae`` in scaled units (training standard deviations);
    ``smape`` in percent, 200 |y - f| / (|y| + |f|), in raw units (Makridakis et al. 2020); ``mase``, the absolute error
    divided by the training error of the seasonal naive method (Hyndman & Koehler 2006), without targets where that is
    0; with quantiles ``quantile_loss`` (mean pinball loss) and ``coverage`` (share between the outermost quantiles).
    """

    primary = "mse"

    def __init__(
        self,
        spec: Mapping[str, Any],
        encoder: Mapping[str, Any],
        *,
        horizon: int,
        loss: Loss,
        quantiles: list[float],
        head: Head,
        dropout: float,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, get_args(Loss), "task")
        check_choice("head", head, get_args(Head), "task")
        check_share("task.dropout", dropout)
        levels = sorted(quantiles) if loss == "quantile" else [0.5]
        if 0.5 not in levels or not all(0 < q < 1 for q in levels):
            raise ValueError(f"task.quantiles={quantiles} must lie between 0 and 1 and hold 0.5, the point forecast")
        self.horizon, self.targets, self.loss_kind, self.flatten = horizon, spec["targets"], loss, head == "flatten"
        self.season, self.sequences, self.observed = spec["season"], encoder["sequences"], spec["observed"]
        self.backward = encoder["backward"]
        if self.flatten and encoder["steps"] is None:
            raise ValueError("task.head='flatten' needs rows of one length; use 'last'")
        self.quantiles = levels
        self.levels: Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.middle = levels.index(0.5)
        self.primary = "mae" if loss in ("mae", "quantile") else "mse"
        width = encoder["size"] * (encoder["steps"] if self.flatten else 1)
        count = self.targets // self.sequences  # targets that are forecast from one sequence
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, horizon * count * len(levels))
        self.known = nn.Linear(spec["known"], count) if spec["known"] else None

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Forecasts (B, Z, N, Q) in scaled units, float32; quantiles in ascending order."""
        encoded = model.encode(batch)
        rows, n, q = len(batch.weights), self.targets, len(self.levels)
        windows = encoded.y  # never padded
        y = windows.flatten(1) if self.flatten else last_step(windows, None, backward=self.backward)
        out: Tensor = full(self.head(self.dropout(y)))  # (B * sequences, Z * N / sequences * Q)
        out = out.reshape(rows, self.sequences, self.horizon, n // self.sequences, q)
        out = out.transpose(1, 2).reshape(rows, self.horizon, n, q)  # targets: sequence by sequence
        if self.known is not None:
            effect = full(self.known(batch.inputs["known"]))  # (B, Z, N / sequences)
            out = out + effect.repeat(1, 1, self.sequences)[..., None]
        if q > 1:
            out = out.sort(-1).values  # a higher quantile must not be below a lower one
        spread, shift = encoded.context["spread"], encoded.context["shift"]  # (B, N)
        return out * spread[:, None, :, None] + shift[:, None, :, None]

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """The sum over rows of weight x share of the targets that were observed."""
        observed = batch.targets.get("observed")
        return (batch.weights if observed is None else batch.weights * observed.mean((1, 2))).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x mean loss over steps and observed targets, sum of weights)."""
        return self._loss(self.outputs(model, batch), batch), self.weight(model, batch)

    def _loss(self, out: Tensor, batch: Batch) -> Tensor:
        target = batch.targets["target"][..., None].expand_as(out)  # (B, Z, N, Q)
        if self.loss_kind == "mse":
            each = F.mse_loss(out, target, reduction="none")
        elif self.loss_kind == "mae":
            each = F.l1_loss(out, target, reduction="none")
        elif self.loss_kind == "huber":
            each = F.huber_loss(out, target, reduction="none")
        else:
            each = pinball(out, target, self.levels)
        observed = batch.targets.get("observed")
        each = each.mean(-1) if observed is None else each.mean(-1) * observed
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

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """time, and for each target its forecast and the other quantiles, in raw units; an entry for each step."""
        mean, std = (
            torch.tensor(np.stack(context[name]))[:, None, :, None] for name in ("mean", "std")
        )  # (B, 1, N, 1)
        out = predictions["quantiles"].double() * std + mean
        columns: Columns = {"time": [time for times in context["times"] for time in times]}
        for number, name in enumerate(names):
            columns[name] = out[:, :, number, self.middle].flatten().tolist()
            for level, values in zip(self.quantiles, out[:, :, number].unbind(-1), strict=True):
                if level != 0.5:
                    columns[f"{name}_q{level:g}"] = values.flatten().tolist()
        return columns

    def examples(self, model: SequenceModel, rows: Iterable[Batch]) -> list[Artifact]:
        """forecast: of each row's first target ``history`` (at most 3 horizons), ``truth`` and ``forecast``, in raw
        units; with quantiles the interval from ``low`` to ``high`` and its ``probability``; the index of its
        ``series``."""
        arrays: dict[str, list[Any]] = {name: [] for name in ("series", "history", "truth", "forecast")}
        if len(self.quantiles) > 1:
            arrays |= {"low": [], "high": [], "probability": []}
        for batch in rows:
            out = self.predict(model, batch)["quantiles"][0, :, 0].float()  # (Z, Q)
            mean, std = (float(batch.targets[name][0, 0]) for name in ("mean", "std"))
            history = batch.inputs["values"][0, -3 * self.horizon :, 0].float() * std + mean
            arrays["series"].append(int(batch.targets["series"][0]))
            arrays["history"].append(history.tolist())
            arrays["truth"].append((batch.targets["target"][0, :, 0].float() * std + mean).tolist())
            arrays["forecast"].append((out[:, self.middle] * std + mean).tolist())
            if len(self.quantiles) > 1:
                arrays["low"].append((out[:, 0] * std + mean).tolist())
                arrays["high"].append((out[:, -1] * std + mean).tolist())
                arrays["probability"].append(self.quantiles[-1] - self.quantiles[0])
        return [Artifact("forecast", arrays)]

    def fitted_baselines(self) -> list[Baseline]:
        """A linear model; none if steps are missing, as least squares would use the values filled in there."""
        return [] if self.observed else [Linear(self.targets)]

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """naive repeats the last value, seasonal_naive the last season (if the lookback is long enough)."""
        values, n = batch.inputs["values"], self.targets
        targets = values[..., :n]  # (B, L, N)
        observed = values[..., -n:] if "observed" in batch.targets else None
        last = targets[:, -1] if observed is None else last_seen(targets, observed)  # (B, N)
        sums = {"naive": errors(last[:, None].expand(-1, self.horizon, -1), batch)}
        if 1 < self.season <= targets.shape[1]:
            phase = torch.arange(self.horizon, device=targets.device) % self.season
            season = targets[:, -self.season :]
            if observed is not None:  # in gaps the last value
                season = torch.where(observed[:, -self.season :] > 0, season, last[:, None])
            sums["seasonal_naive"] = errors(season[:, phase], batch)
        return sums


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
        """(L + 1, L + 1 + Z) float64: the contribution of a batch to X^T [X Y]."""
        x, y, _ = self._split(batch)
        weights = batch.weights.repeat_interleave(self.targets).double()[:, None]
        return x.T @ (torch.cat([x, y], 1) * weights)

    def fit(self, moments: Tensor) -> None:
        size = moments.shape[0]
        gram = moments[:, :size]
        ridge = 1e-6 * gram.diagonal().mean().clamp(min=1e-12)
        self.map = torch.linalg.solve(
            gram + ridge * torch.eye(size, dtype=gram.dtype, device=gram.device), moments[:, size:]
        )

    def metrics(self, batch: Batch) -> Sums:
        assert self.map is not None
        x, _, last = self._split(batch)
        rows = len(batch.weights)
        out = (x @ self.map).reshape(rows, self.targets, -1).transpose(1, 2) + last[:, None]
        return errors(out.float(), batch)

    def _split(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """x (B*N, L + 1) and y (B*N, Z), both minus the last value (B, N), and that value; float64."""
        targets = batch.inputs["values"][..., : self.targets].double()
        last = targets[:, -1]
        x = (targets - last[:, None]).transpose(1, 2).flatten(0, 1)
        y = (batch.targets["target"].double() - last[:, None]).transpose(1, 2).flatten(0, 1)
        return torch.cat([x, torch.ones_like(x[:, :1])], 1), y, last


def pinball(out: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """The quantile loss of Koenker & Bassett (1978) for each level: max(q e, (q - 1) e) with e = target - out."""
    error = target - out
    return torch.maximum(levels * error, (levels - 1) * error)


def errors(out: Tensor, batch: Batch) -> Sums:
    """mse, mae, smape, mase of point forecasts out (B, Z, N) in scaled units."""
    target, shift, std = (batch.targets[k] for k in ("target", "mean", "std"))
    error = out - target
    raw_out, raw_target = out * std[:, None] + shift[:, None], target * std[:, None] + shift[:, None]
    gap = (error * std[:, None]).abs()  # not raw_out - raw_target, which loses digits far from 0
    smape = 200 * gap / (raw_out.abs() + raw_target.abs()).clamp(min=1e-9)
    sums = {"mse": _total(error.square(), batch), "mae": _total(error.abs(), batch), "smape": _total(smape, batch)}
    unit = batch.targets["mase"][:, None]  # (B, 1, N) in raw units; 0 if there is none
    scaled = gap / unit.clamp(min=1e-9)
    sums["mase"] = _total(torch.where(unit > 0, scaled, 0), batch, (unit > 0).float())
    return sums


def _total(each: Tensor, batch: Batch, factor: Tensor | None = None) -> Tensor:
    """(sum, count) of each (B, Z, N) over rows by their weights and observed targets, times a factor of that shape."""
    weights = batch.weights[:, None, None].expand_as(each)
    if "observed" in batch.targets:
        weights = weights * batch.targets["observed"]
    if factor is not None:
        weights = weights * factor
    return mean((each * weights).sum(dtype=torch.float64), weights.sum(dtype=torch.float64))


def build(
    spec: Mapping[str, Any],
    encoder: Mapping[str, Any],
    *,
    lookback: int = 336,
    horizon: int = 96,
    stride: int = 1,
    loss: Loss = "mse",
    quantiles: list[float] = [0.1, 0.5, 0.9],  # noqa: B006
    head: Head = "last",
    dropout: float = 0.0,
) -> Task:
    """Forecast every step of the horizon from the lookback.

    Args:
        lookback: steps that the model reads.
        horizon: steps that it forecasts.
        stride: steps between the starts of training windows, counted from the end of the training rows; evaluation
            always uses every window.
        loss: mse, mae, huber (quadratic up to an error of 1), or quantile (the mean pinball loss of `quantiles`).
        quantiles: levels forecast with loss quantile; 0.5, the point forecast, must be one of them.
        head: input of the linear head: last (the family's last step; of a direction that reads backward, its first)
            or flatten (all its steps).
        dropout: probability that an input of the head is dropped.
    """
    for key, value in {"lookback": lookback, "horizon": horizon, "stride": stride}.items():
        check_least(f"task.{key}", value, 1)
    return Forecast(spec, encoder, horizon=horizon, loss=loss, quantiles=quantiles, head=head, dropout=dropout)
