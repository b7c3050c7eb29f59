"""Uploading a dataset folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import ConfigError


def check_login() -> None:
    """Raises ConfigError where nobody is logged in to the hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("--push: nobody is logged in to the hub; run `hf auth login` first")


def upload(folder: Path, repo: str) -> None:
    """Make the dataset repository `repo` (OWNER/NAME), private where it is new, and upload the
    folder to it. The login is the one that huggingface_hub finds (`hf auth login`, or HF_TOKEN).
    Raises ConfigError where the hub refuses, cannot be reached, or knows no such name."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type="dataset")
    except (HTTPError, ValueError, OSError) as error:
        raise ConfigError(f"--push {repo}: {error}") from None
