"""Files in PyTorch's format, made without PyTorch: what its pickler and its archives hold."""

import collections
import io
import pickle
import sys
import types
import zipfile

import numpy as np


def fake_torch():
    """Modules with torch's names, so that Python's own pickler writes its globals."""
    names = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    for module, attribute in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "FloatStorage"),
        ("torch", "LongStorage"),
        ("torch", "HalfStorage"),
        ("torch", "load"),
    ):
        stub = type(attribute, (), {"__module__": module, "__qualname__": attribute})
        setattr(names[module], attribute, stub)
    names["torch"]._utils = names["torch._utils"]
    return names


STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


class View:
    """A tensor whose place in its storage is said by hand."""

    def __init__(self, storage, offset, shape, strides, key="7"):
        self.storage, self.where, self.key = storage, (offset, shape, strides), key


class Parameter:
    def __init__(self, value):
        self.value = value


class TorchPickler(pickle.Pickler):
    """Writes arrays as torch 2 does: rebuild calls on storages named by persistent ids."""

    def __init__(self, file, protocol=2):
        super().__init__(file, protocol)
        self.modules, self.storages = fake_torch(), {}

    def reducer_override(self, value):
        if isinstance(value, Parameter):
            call = self.modules["torch._utils"]._rebuild_parameter
            return call, (value.value, True, collections.OrderedDict())
        if not isinstance(value, np.ndarray | View):
            return NotImplemented
        if isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in value.strides)
            value = View(value, 0, value.shape, strides, str(len(self.storages)))
        self.storages[value.key] = value.storage
        rebuild = self.modules["torch._utils"]._rebuild_tensor_v2
        storage = Storage(value.key, value.storage)
        return rebuild, (storage, *value.where, False, collections.OrderedDict())

    def persistent_id(self, value):
        if isinstance(value, Storage):
            kind = getattr(self.modules["torch"], STORAGES[value.content.dtype.name])
            return ("storage", kind, value.key, "cpu", value.claimed)
        return None


class Storage:
    def __init__(self, key, content):
        self.key, self.content, self.claimed = key, content, content.size


def pickled(value, protocol=2):
    file = io.BytesIO()
    pickler = TorchPickler(file, protocol)
    before = {name: sys.modules.get(name) for name in pickler.modules}
    sys.modules.update(pickler.modules)
    try:
        pickler.dump(value)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return file.getvalue(), {key: array.tobytes() for key, array in pickler.storages.items()}


def archive(path, content, storages=None, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("model/data.pkl", content)
        file.writestr("model/byteorder", b"little")
        for key, stored in (storages or {}).items():
            file.writestr(f"model/data/{key}", stored)
        for name, stored in extra:
            file.writestr(name, stored)
    return path


def write_pth(path, value, protocol=2):
    return archive(path, *pickled(value, protocol))
