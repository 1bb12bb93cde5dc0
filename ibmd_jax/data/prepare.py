"""Prepares a TensorFlow dataset from original files that are already here; nothing is downloaded.

python -m ibmd_jax.data.prepare fashion_mnist --from /usr/share/datasets/fashion-mnist --repacked
python -m ibmd_jax.data.prepare edges2handbags --from downloads/edges2handbags

Then config.data.source = tfds:fashion_mnist reads it. Datasets lie in $TFDS_DATA_DIR, or in ~/tensorflow_datasets.
"""

import argparse
import sys
from pathlib import Path

from ibmd_jax.core.errors import UserError
from ibmd_jax.data.tfds import open_builder


def prepare(name: str, files: Path, repacked: bool = False) -> Path:
    """Makes the ArrayRecord files of a dataset. Returns: their folder.

    Args: repacked: whether files of the right name but another checksum are taken, too.
    Raises: UserError for an unknown dataset, missing files, or a full disk.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import compute_url_info

    if not files.is_dir():
        raise UserError(f"there is no folder {files}")
    builder = open_builder(name)
    if builder.data_path.exists():
        return Path(builder.data_path)
    missing = []
    for url, expected in (builder.url_infos or {}).items():
        file = files / (expected.filename or url.rpartition("/")[2])
        if not file.is_file():
            missing.append(file.name)
        elif (found := compute_url_info(file)) != expected:
            if not repacked:
                raise UserError(
                    f"{file} is not the file that {name} is made of: its checksum differs. "
                    "If it is the same one packed anew, as Debian's are, add --repacked"
                )
            builder.url_infos[url] = found
    if missing:
        raise UserError(f"{files} lacks {', '.join(missing)}, which the dataset {name} is made of")
    config = tfds.download.DownloadConfig(manual_dir=str(files))
    try:
        builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise UserError(f"cannot write the dataset {name} to {builder.data_path}: {error.strerror or error}") from error
    except (AssertionError, ValueError) as error:  # what tfds raises where a builder's files are not there
        raise UserError(f"cannot prepare {name} from {files}: {str(error).splitlines()[0]}") from error
    return Path(builder.data_path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "ibmd_jax.data.prepare", None, __doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", help="a dataset of TensorFlow Datasets, or edges2handbags or diode_normals")
    parser.add_argument("--from", dest="files", type=Path, required=True, help="folder of the original files")
    parser.add_argument("--repacked", action="store_true", help="take files of another checksum than the dataset's")
    args = parser.parse_args(argv)
    try:
        print(f"prepared {prepare(args.name, args.files.expanduser(), args.repacked)}: use it as tfds:{args.name}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
