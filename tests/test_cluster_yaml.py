"""cluster.yaml: Ray's own schema accepts it, and its AWS parts, which the schema leaves open, hold known names."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]

PROVIDER = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "use_external_head_ip",
    "security_group",
    "key_pair",
    "aws_credentials",
    "cloudwatch",
    "disable_node_updaters",
}  # that Ray reads
INSTANCE = {  # arguments of EC2's RunInstances but MinCount and MaxCount, which Ray sets, and SubnetIds, which it reads
    "AdditionalInfo",
    "BlockDeviceMappings",
    "CapacityReservationSpecification",
    "CpuOptions",
    "CreditSpecification",
    "DisableApiStop",
    "DisableApiTermination",
    "EbsOptimized",
    "EnablePrimaryIpv6",
    "EnclaveOptions",
    "HibernationOptions",
    "IamInstanceProfile",
    "ImageId",
    "InstanceInitiatedShutdownBehavior",
    "InstanceMarketOptions",
    "InstanceType",
    "Ipv6AddressCount",
    "Ipv6Addresses",
    "KernelId",
    "KeyName",
    "LaunchTemplate",
    "LicenseSpecifications",
    "MaintenanceOptions",
    "MetadataOptions",
    "Monitoring",
    "NetworkInterfaces",
    "NetworkPerformanceOptions",
    "Placement",
    "PrivateDnsNameOptions",
    "PrivateIpAddress",
    "RamdiskId",
    "SecurityGroupIds",
    "SecurityGroups",
    "SubnetId",
    "SubnetIds",
    "TagSpecifications",
    "UserData",
}
DISK = {"DeviceName", "Ebs", "NoDevice", "VirtualName"}
EBS = {"DeleteOnTermination", "Encrypted", "Iops", "KmsKeyId", "SnapshotId", "Throughput", "VolumeSize", "VolumeType"}


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def check(config: dict[str, Any]) -> None:
    """What `ray up` checks before it makes anything, and the names that it leaves to AWS."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))
    for name, given, known in _open_parts(config):
        assert given.keys() <= known, f"{name} has unknown names: {sorted(given.keys() - known)}"


def _open_parts(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], set[str]]]:
    yield "provider", config["provider"], PROVIDER
    for kind, node in config["available_node_types"].items():
        yield f"{kind}.node_config", node["node_config"], INSTANCE
        for disk in node["node_config"].get("BlockDeviceMappings", []):
            yield f"{kind}.BlockDeviceMappings", disk, DISK
            yield f"{kind}.Ebs", disk["Ebs"], EBS


def test_ray_accepts_the_file(config):
    check(config)


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("provider",),
        ("auth",),
        ("available_node_types", "gpu"),
        ("available_node_types", "gpu", "node_config"),
        ("available_node_types", "head", "node_config", "BlockDeviceMappings", 0),
        ("available_node_types", "head", "node_config", "BlockDeviceMappings", 0, "Ebs"),
    ],
)
def test_a_misspelled_key_is_refused(config, place):
    part: Any = config
    for key in place:
        part = part[key]
    key = next(iter(part))
    part[f"{key}s"] = part[key]
    with pytest.raises(Exception, match=f"{key}s"):
        check(config)


def test_nodes_come_on_demand_and_go_when_idle(config):
    nodes = dict(config["available_node_types"])
    head = nodes.pop(config["head_node_type"])
    assert "GPU" not in head["resources"]
    assert all(node["min_workers"] == 0 for node in nodes.values())
    assert {"GPU" in node["resources"] for node in nodes.values()} == {True, False}
    assert all(node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for node in nodes.values())
    assert sum(node["max_workers"] for node in nodes.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0 and config["provider"]["cache_stopped_nodes"] is False


def test_the_dashboard_listens_on_loopback_only(config):
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "0.0.0.0" not in yaml.safe_dump(config)


def test_nodes_install_the_versions_of_constraints_txt(config):
    sources = [path for path in config["file_mounts"].values() if not path.startswith("~")]
    assert all((ROOT / path).is_file() for path in sources)
    assert {"pyproject.toml", "constraints.txt"} <= set(sources)
    assert any("-c constraints.txt" in command for command in config["setup_commands"])
