"""LoRA adapters over a model in memory, through peft.

Without one active, the base computes exactly as before.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from services.kit.errors import UnsupportedFormat

if TYPE_CHECKING:
    from peft import PeftModel


class LoraAdapters:
    """The adapters of one model.

    peft is imported when the first one comes, and changes the model in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._peft: PeftModel | None = None
        self._keys: dict[str, str] = {}  # peft makes module names of its names, which must hold no dot.
        self._num_loaded = 0
        self._active: str | None = None

    def load(self, name: str, folder: Path) -> None:
        """Read `adapter_config.json` and `adapter_model.safetensors`.

        Raises UnsupportedFormat for anything else.
        """
        if name in self._keys:
            return
        if not (folder / "adapter_model.safetensors").is_file():
            raise UnsupportedFormat(
                f"adapter {name} has no adapter_model.safetensors; pickled weights are not loaded"
            )
        from peft import PeftModel

        self._num_loaded += 1
        key = f"adapter_{self._num_loaded}"
        device = str(self._model.device)
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(
                    self._model, folder, adapter_name=key, torch_device=device, local_files_only=True
                )
            else:
                self._peft.load_adapter(
                    str(folder), adapter_name=key, torch_device=device, local_files_only=True
                )
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            raise UnsupportedFormat(f"adapter {name} does not fit this model: {error}") from error
        finally:
            self._silence()
        self._model.train(False)
        self._keys[name] = key

    def drop(self, name: str) -> None:
        """Take one out of memory; one that is not there is no error."""
        key = self._keys.pop(name, None)
        if key is not None and self._peft is not None:
            self._peft.delete_adapter(key)
            self._silence()

    def activate(self, name: str | None) -> None:
        """Let the next forward passes go through this adapter, or through the base alone."""
        if self._peft is None or name == self._active:
            return
        if name is None:
            self._silence()
            return
        self._tuner.enable_adapter_layers()
        self._peft.set_adapter(self._keys[name])
        self._active = name

    @property
    def _tuner(self) -> Any:
        """What switches the layers; peft types it as any module."""
        assert self._peft is not None
        return self._peft.base_model

    def _silence(self) -> None:
        if self._peft is not None:
            self._tuner.disable_adapter_layers()
        self._active = None
