"""Peaks by the names that CUDA reports."""

import pytest

from trainer.observe.flops import DATASHEET_FLOPS_PER_S, peak_flops_per_s

# Names as devices report them, by the row of the table.
DEVICES = {
    "H100 PCIe": ["NVIDIA H100 PCIe"],
    "H100 NVL": ["NVIDIA H100 NVL"],
    "H100": ["NVIDIA H100 80GB HBM3", "NVIDIA H100"],
    "H200 NVL": ["NVIDIA H200 NVL"],
    "H200": ["NVIDIA H200"],
    "B200": ["NVIDIA B200"],
    "A100": [
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA A100-PCIE-40GB",
        "A100-PCIE-40GB",
        "A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
    ],
    "L40S": ["NVIDIA L40S"],
    "L4": ["NVIDIA L4"],
}


@pytest.mark.parametrize(("row", "half", "tf32"), DATASHEET_FLOPS_PER_S)
def test_every_row_matches_its_devices(row: str, half: float, tf32: float) -> None:
    for name in DEVICES[row]:
        assert peak_flops_per_s(name, "bf16-mixed") == half, name
        assert peak_flops_per_s(name, "32-true") == tf32, name


@pytest.mark.parametrize(
    "name", ["NVIDIA GH200 480GB", "NVIDIA L40", "NVIDIA A10", "Tesla T4", "NVIDIA A100-SXM4-40GB MIG 1g.5gb"]
)
def test_other_devices_have_no_peak(name: str) -> None:
    assert peak_flops_per_s(name, "bf16-mixed") is None
