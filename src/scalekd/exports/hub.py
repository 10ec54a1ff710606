"""Upload an exported folder to the Hugging Face hub, or to the server at `HF_ENDPOINT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, errors

from scalekd.errors import UserError, first_line


def push_to_hub(folder: Path, files: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload files of a folder as a model, with the token of `hf auth login` or `HF_TOKEN`.

    Args:
        folder: The folder; its other files are not uploaded.
        files: The names of the files to upload.
        repository: `USER/NAME`; created if it does not exist.
        private: Whether a new repository is private.

    Returns:
        The repository's URL.

    Raises:
        UserError: If the name is invalid, or the hub refuses or cannot be reached.
    """
    api = HfApi(library_name="scalekd")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=list(files), commit_message="Export of scalekd"
        )
    except (errors.HTTPError, ValueError, OSError) as error:  # type: ignore[attr-defined]
        reason = first_line(error)
        raise UserError(f"push_to_hub: {repository} at {api.endpoint} was not written: {reason}") from error
    return str(url)
