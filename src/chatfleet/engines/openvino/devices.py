"""Where a model runs: OpenVINO's name of a device, checked."""

import openvino as ov

from chatfleet.core.errors import ConfigurationError


def find_device(device: str) -> str:
    """OpenVINO's name of `device` (auto is CPU). Raises ConfigurationError, naming the ones that are here.

    What names several, such as AUTO:GPU,CPU, is OpenVINO's to check.
    """
    if device == "auto":
        return "CPU"
    name = device.upper()
    available: list[str] = ov.Core().available_devices
    # Of several GPUs, GPU.0 and GPU.1 are listed; GPU is the first.
    if ":" not in name and not any(each == name or each.startswith(f"{name}.") for each in available):
        raise ConfigurationError(
            f"There is no device {name} that OpenVINO can use here; there is {', '.join(available)}. Give one of these "
            "with --device, or install the driver of the other: https://docs.openvino.ai, Additional Configurations."
        )
    return name


def load_advice(device: str) -> str:
    """What to look at where a model did not load on `device`."""
    if device.partition(".")[0] == "NPU":
        return "Continuous batching is made for CPUs and GPUs: give --device cpu, or gpu where there is one."
    return "Check that the model is whole and the device is there, or lower --kv-cache-gb if memory is short."
