"""What can go wrong on a night of a soak, drawn by chance from a seed and caused for real."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.soak.bucket import Bucket
from validation.records import NEGATIVE, POSITIVE

# Name -> how often, in parts.
NIGHTS = {
    "nothing": 8,
    "killed": 6,
    "pruning killed": 2,
    "store away": 4,
    "cache damaged": 3,
    "object truncated": 2,
    "junk": 2,
    "invalid batch": 2,
    "one CNN fails": 3,
    "both CNNs fail": 1,
    "champion tampered": 2,
    "pointer torn": 1,
    "table lost": 1,
    "a person answers": 3,
    "rolled back": 2,
    "run twice": 1,
}
FAILURES = ("crashes", "diverges", "killed", "silent")


def draw(random: Random) -> str:
    """Return what happens on a night."""
    return random.choices(list(NIGHTS), list(NIGHTS.values()))[0]


def damage_cache(home: Path, random: Random) -> int:
    """Write over some bytes of a few files of the cache, and cut others short; return how many were hit."""
    files = sorted(path for path in (home / "cache").rglob("*") if path.is_file() and path.stat().st_size > 16)
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(path.relative_to(home / "cache").parts[0], []).append(path)
    # One of each kind, so that the many fetched images do not take all.
    hit = [random.choice(found) for found in kinds.values() if random.random() < 0.7]
    for path in hit:
        size = path.stat().st_size
        with path.open("r+b") as file:
            if random.random() < 0.3:
                file.truncate(random.randrange(size))
            else:
                file.seek(random.randrange(size))
                file.write(random.randbytes(min(64, size)))
    return len(hit)


def truncate_object(bucket: Bucket) -> None:
    """A cell arrives cut short."""
    key = bucket.random.choice(sorted(bucket.objects))
    bucket.put(key, bucket.objects[key][: len(bucket.objects[key]) // 2])


def put_junk(bucket: Bucket, night: int) -> None:
    """What people leave among cells: a file manager's file, a text, a patient without a name, a class nobody knows."""
    cell = next(data for data in bucket.objects.values() if data.startswith(b"\x89PNG"))
    for name, data in {
        f"labeled/{NEGATIVE}/Thumbs.db": b"\xd0\xcf\x11\xe0",
        f"labeled/{NEGATIVE}/notes {night}.txt": b"left here by mistake",
        f"labeled/{POSITIVE}/nobody{night}.png": cell,
        f"labeled/Unsure/C1P1ThinF_IMG_cell_{night}.png": cell,
    }.items():
        bucket.put(name, data)


def take_class_away(bucket: Bucket) -> dict[str, bytes]:
    """All cells of one class are gone for a night; return them."""
    label = bucket.random.choice((POSITIVE, NEGATIVE))
    gone = {key: data for key, data in bucket.objects.items() if key.startswith(f"labeled/{label}/")}
    for key in gone:
        bucket.delete(key)
    return gone


def tamper(home: Path, model: str | None) -> tuple[Path, bytes] | None:
    """Add a byte to the champion's registered file; return the file and its sound bytes."""
    from validation.digest import sha256

    for path in sorted((home / "mlflow-artifacts").rglob("*.onnx")):
        data = path.read_bytes()
        if sha256(data) == model:
            path.write_bytes(data + b"!")
            return path, data
    return None


def tear_pointer(home: Path, random: Random) -> None:
    """Cut the pointer to the newest snapshot short."""
    path = home / "store" / "retraining" / "latest" / "snapshot.json"
    if path.exists():
        data = path.read_bytes()
        path.write_bytes(data[: random.randrange(len(data))])


def lose_table(home: Path) -> None:
    """Delete the table of the newest snapshot."""
    tables = sorted((home / "store" / "retraining" / "snapshots").glob("*.parquet"), key=lambda p: p.stat().st_mtime)
    if tables:
        tables[-1].unlink()
