"""Pack: every cell of a split decoded, padded and resized, in one uint8 array that is read memory-mapped.

Squares are cached by content (infra.local.packed_cells), so a night decodes only what is new.
"""

from __future__ import annotations

from tasks.cells.packing import PIXELS_VERSION, pixels_digest, write_pack
from tasks.context import Context
from tasks.stage import stage
from validation.digest import digest
from validation.errors import RetrainError
from validation.records import Pack, Split


def pack(context: Context, split: Split) -> Pack:
    """Return the pack of a split at the settings' side; make it if its array is missing or damaged.

    An array that lies there is read and hashed as a whole before it is used. One that is made now has the digest of
    what was written into it, for which only new cells are hashed: each of the others was compared with its checksum in
    the cache (``write_pack``). Another machine that packs the same split must come to the same digest.
    """
    side = context.settings.training.side
    id_ = digest(split.id, side, PIXELS_VERSION, "by row")
    path = context.workspace.pack_path(id_)
    stored = context.records.find(Pack, id_)
    if stored is not None and path.exists() and pixels_digest(path, stored.cells, side) == stored.pixels:
        return stored
    rows = context.records.load_table(split.table)
    pixels = write_pack(context, path, rows, side)
    result = Pack(id=id_, split=split.id, side=side, cells=len(rows), pixels=pixels)
    stored = context.records.save_once(result, id_)
    if stored.pixels != result.pixels:
        raise RetrainError(
            f"pack {id_} came out with other pixels than recorded",
            "was Pillow changed? install the locked versions; else delete cache/cells under the home folder",
        )
    return result


pack_task = stage(pack)
