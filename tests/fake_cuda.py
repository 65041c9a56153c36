"""CUDA tensors on a machine without a GPU: real values on the CPU, and PyTorch's own device rules.

Every operation is first done by FakeTensorMode on fake tensors, which decides where the result is
and refuses operands of different devices, as a GPU would. The values come from the same operation
on the CPU, so that code which looks at values (`.item()`, masks, `nonzero`) runs to its end.
FakeTensorMode alone stops there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

CUDA = torch.device("cuda:0")
_METHODS, _IS_BUILT, _HAS_PRIMARY_CONTEXT = 60, 2, 4
"""Virtual methods: as many as are copied, and places among those of AcceleratorHooksInterface."""
_RANDOM = ("rand", "normal", "uniform", "bernoulli", "multinomial", "dropout", "exponential")
_WHOLE_INDEX = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default,
                torch.ops.aten.index_put_.default)  # fmt: skip


class CudaTensor(Tensor):
    """Says that it is on cuda:0; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> CudaTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"on cuda: {self.held!r}"

    def untyped_storage(self) -> Any:
        """Give what safetensors tells shared tensors by."""
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu()")

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Have `module.to` swap a parameter as a whole: its data alone would be without `held`."""
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: Any, meta: Any, size: Any, stride: Any) -> CudaTensor:
        return CudaTensor(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _done(func, args, kwargs or {})


_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
_PLACES: dict[Any, Any] = {}
RANDOM_ON_CUDA: list[str] = []
"""Operations that drew from the device's generator: they would depend on the device."""


def _done(func: Any, args: Any, kwargs: Any) -> Any:
    """Do an operation: where, by the fake tensors; what, on the CPU."""
    flat, _ = tree_flatten((args, kwargs))
    asked = kwargs.get("device")
    moves = asked is not None and torch.device(asked).type == "cuda"
    if not moves and not any(isinstance(one, CudaTensor) for one in flat):
        with _disable_current_modes():
            return func(*args, **kwargs)
    with _disable_current_modes():
        places = _places(func, args, kwargs, flat)
        on_cpu = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
        values = func(*_real(args), **_real(on_cpu))
        if any(word in str(func) for word in _RANDOM):
            RANDOM_ON_CUDA.append(str(func))
    number = iter(range(10**6))

    def placed(value: Tensor) -> Tensor:
        at = next(number)
        where = places[at] if isinstance(places, list) else places
        return CudaTensor(value) if where.type == "cuda" else value

    out = tree_map_only(Tensor, placed, values)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _real(tree: Any) -> Any:
    return tree_map(lambda one: one.held if isinstance(one, CudaTensor) else one, tree)


def _places(func: Any, args: Any, kwargs: Any, flat: list[Any]) -> Any:
    """Return the device of each output; raises as FakeTensorMode does where devices are mixed."""
    if func in _WHOLE_INDEX and args[0].device.type == "cpu":
        # Of these FakeTensorMode lets every mixture pass; PyTorch does not.
        for index in args[1]:
            if isinstance(index, CudaTensor):
                raise RuntimeError("indices should be on the CPU, where the indexed tensor is")

    def fake(value: Tensor) -> Tensor:
        held = value.held if isinstance(value, CudaTensor) else value
        meta = torch.empty_strided(held.size(), held.stride(), dtype=held.dtype, device="meta")
        return FakeTensor(_FAKE, meta, CUDA if isinstance(value, CudaTensor) else value.device)

    # Where the result is depends on the devices alone, and on which operands are numbers.
    kinds = tuple((one.device.type, one.dim() > 0) for one in flat if isinstance(one, Tensor))
    key = (
        func,
        kinds,
        str(kwargs.get("device")),
        str([a for a in args if type(a) is torch.device]),
    )
    if key in _PLACES:
        return _PLACES[key]
    fakes, fake_kwargs = tree_map_only(Tensor, fake, (args, kwargs))
    try:
        with _FAKE:
            outputs = func(*fakes, **fake_kwargs)
    except (DynamicOutputShapeException, DataDependentOutputException):
        tensors = [fake(one) for one in flat if isinstance(one, Tensor)]
        _PLACES[key] = FakeTensor._find_common_device(func, tensors)[0]
    else:
        tensors = [one for one in tree_flatten(outputs)[0] if isinstance(one, Tensor)]
        _PLACES[key] = [one.device for one in tensors]
    return _PLACES[key]


@contextmanager
def cuda_in_a_build_without() -> Iterator[None]:
    """Let autograd accept tensors that say they are on CUDA, in a build of PyTorch without it.

    It asks for a guard of the device and for the accelerator, and ends the process where there is
    none. PyTorch has a guard that does nothing, for builds with CUDA on machines without a GPU: it
    is put in place where a guard says that there are 0 devices. Two answers of the hooks of CUDA
    ("is built", "has a context") are made to be yes. Both are put back at the end. It has to come
    before the first backward pass of the process, which counts the devices.
    """
    libraries = Path(torch.__file__).parent / "lib"
    answer = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)
    no, yes = answer(lambda _: 0), answer(lambda _: 1)
    try:
        c10 = ctypes.CDLL(str(libraries / "libc10.so"))
        guards = (ctypes.c_void_p * 2).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
        hooks_of = ctypes.CDLL(str(libraries / "libtorch_cpu.so"))._ZN2at6detail12getCUDAHooksEv
        guard_setter = torch._C._ensureCUDADeviceGuardSet
    except (OSError, ValueError, AttributeError) as error:
        pytest.skip(f"this build of PyTorch has no such guards and hooks: {error}")
    hooks_of.restype = ctypes.c_void_p
    hooks, guard_before = ctypes.c_void_p.from_address(hooks_of()), guards[1]
    methods_before = hooks.value
    methods = (ctypes.c_void_p * _METHODS)(
        *(ctypes.c_void_p * _METHODS).from_address(methods_before)
    )
    for place in (_IS_BUILT, _HAS_PRIMARY_CONTEXT):
        methods[place] = ctypes.cast(yes, ctypes.c_void_p).value
    none_there = (ctypes.c_void_p * _METHODS)(*[ctypes.cast(no, ctypes.c_void_p).value] * _METHODS)
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(none_there))
    try:
        guards[1] = ctypes.addressof(guard)
        guard_setter()
        hooks.value = ctypes.addressof(methods)
        yield
    finally:
        hooks.value, guards[1] = methods_before, guard_before


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have `device="cuda"` mean `CudaTensor` for the length of a `with` block.

    Inside of `cuda_in_a_build_without`.
    """
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests marked gpu say more")
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    # AdamW then updates all parameters at once, as it does on a GPU.
    kinds = [torch.Tensor, torch.nn.Parameter, CudaTensor]
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_foreach_supported_types", kinds)
    RANDOM_ON_CUDA.clear()
    with _FAKE, _Mode():
        yield
