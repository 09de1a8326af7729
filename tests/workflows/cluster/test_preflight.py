"""What nodes have in common is looked for on each; test_hosts.py does so where they differ for real."""

from __future__ import annotations

import os

import pytest

from datasets.pipeline.storage import Storage
from workflows.cluster import preflight
from workflows.cluster.backend import choose_interface
from workflows.cluster.preflight import MAX_FILES, check_reach


def test_where_all_nodes_reach_everything_nothing_is_said_and_nothing_is_left(session, tmp_path):
    (tmp_path / "data.csv").touch()
    check_reach(Storage(tmp_path / "runs"), [str(tmp_path / "data.csv"), "s3://bucket/data.csv"])
    assert not list((tmp_path / "runs").iterdir())


def test_what_a_node_does_not_reach_is_told_with_its_address(session, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_find_problem", lambda uri, probe, node, sources: f"{len(sources)} are missing")
    files = [tmp_path / str(number) for number in range(3 * MAX_FILES)]
    for file in files:
        file.touch()
    with pytest.raises(ValueError, match=rf"node [\d.]+: {MAX_FILES} are missing\nUse a folder that every node mounts"):
        check_reach(Storage(tmp_path / "runs"), [str(file) for file in files])
    assert not list((tmp_path / "runs").iterdir())


def test_a_node_that_says_that_it_wrote_and_did_not_is_found(session, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_find_problem", lambda *arguments: None)
    with pytest.raises(ValueError, match="what it wrote to storage did not arrive"):
        check_reach(Storage(tmp_path))


def test_a_node_that_dies_while_it_looks_is_told(session, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_find_problem", lambda *arguments: os._exit(1))
    with pytest.raises(ValueError, match="could not look"):
        check_reach(Storage(tmp_path))


def test_gloo_takes_the_interface_of_the_address_of_ray_unless_one_was_chosen(monkeypatch):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # so that it is taken back afterwards
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"
