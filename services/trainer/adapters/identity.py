"""Who this Trainer is, the same at every start from the same home."""

from pathlib import Path

from services.kit.names import parse_id
from services.trainer.adapters.durable import sync_folder
from services.trainer.core.ids import new_id


def owner_id(folder: Path) -> str:
    """The id kept in a file of `folder`, made at the first start."""
    path = folder / "owner"
    if not path.exists():
        draft = folder / "owner.draft"
        draft.write_text(new_id("trainer"), "utf-8")
        draft.replace(path)
        sync_folder(folder)
    return parse_id(path.read_text("utf-8").strip(), field=str(path))
