"""What torch's errors look like that no file is to blame for: memory that is not enough, a device that fails."""

from __future__ import annotations

import re

_ASKED = re.compile(r"ried to allocate ([\d.]+ ?\w+)")
# CUDA's and its libraries' words, ROCm's, XPU's, Metal's. torch has a class for them (AcceleratorError) since 2.8, but
# does not raise it for all.
_OF_A_DEVICE = re.compile(
    r"\b(CUDA|HIP|XPU|MPS|cuDNN|cuda\w+|CUBLAS|hip\w+|roc\w+|MIOpen|NVML)( driver| runtime)? error\b"
    r"|\b(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS)_STATUS_|miopenStatus"
    r"|Native API failed|UR_RESULT_ERROR|PI_ERROR|[Cc]ommand buffer",
)


class SilentDeviceError(RuntimeError):
    """A device that gives no answer in time: lost, as torch's errors say it of others."""


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error is one of CUDA and XPU; on MPS it is a RuntimeError that says so."""
    return error.__class__.__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()


def out_of_memory(error: BaseException) -> str:
    """Whose memory is not enough and what helps, where that is what an error of torch says; "" for another error."""
    on_device = is_out_of_memory(error)
    if not on_device and "DefaultCPUAllocator" not in str(error):
        return ""
    asked = _ASKED.search(str(error))
    more = f": {asked[1]} more were asked for" if asked else ""
    owner, first = ("the device", "--device cpu, ") if on_device else ("this machine", "fewer --threads, ")
    return f"{owner} has not enough memory{more}; {first}a smaller --ctx, or --stream where there is one, may help"


def device_failed(error: BaseException) -> str:
    """That a device failed or is lost and what can be done, where that is what an error of torch says; "" for another.

    What such a device held is gone, and the process cannot use it again.
    """
    text = str(error)
    known = isinstance(error, SilentDeviceError) or error.__class__.__name__ == "AcceleratorError"
    if not known and not _OF_A_DEVICE.search(text):
        return ""
    line = (text.strip() or error.__class__.__name__).splitlines()[0][:200].rstrip(".")
    return f"the device failed ({line}); --device cpu does the work without it"


def in_words(error: BaseException) -> str:
    """Either of them, one line; "" for another error."""
    return out_of_memory(error) or device_failed(error)
