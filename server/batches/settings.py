"""The settings of batches."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ByteSize, Field

_MIB = 2**20


@dataclass(frozen=True)
class BatchLimits:
    """Limits of files and batches."""

    max_file_bytes: int = 200 * _MIB
    max_folder_bytes: int = 10 * 1024 * _MIB
    max_lines: int = 50_000  # of a file
    max_line_bytes: int = 8 * _MIB + 4096  # a body as long as that of an HTTP request, and what is around it
    max_open_batches: int = 32  # of a key: that have not ended
    max_kept_batches: int = 1000  # of a key: that have ended, of which the oldest are forgotten


class BatchSettings(BaseModel):
    """Batches."""

    batch_folder: Path | None = Field(
        None,
        description="Folder for the files and batches of /v1/files and /v1/batches, which continue after a restart. "
        "Default: none, and these endpoints reject requests.",
    )
    batch_file_size: ByteSize = Field(
        ByteSize(BatchLimits.max_file_bytes), ge=1, description="Maximum size of an uploaded file."
    )
    batch_folder_size: ByteSize = Field(
        ByteSize(BatchLimits.max_folder_bytes),
        ge=1,
        description="Maximum size of all files in the batch folder, and of the lines and answers of batches that have "
        "not ended, shared fairly between API keys. Uploads and new batches over the limit get status 413.",
    )
    batch_max_lines: int = Field(
        BatchLimits.max_lines, ge=1, description="Maximum number of lines, that is requests, in a batch."
    )
    batch_max_open: int = Field(
        BatchLimits.max_open_batches,
        ge=1,
        description="Maximum number of batches of an API key that have not ended. More get status 429.",
    )
    batch_concurrency: int | None = Field(
        None,
        ge=1,
        description="Maximum number of batch lines in the engine at the same time. Default: half of --max-num-seqs.",
    )

    @property
    def batch_limits(self) -> BatchLimits:
        """Limits of files and batches."""
        return BatchLimits(
            int(self.batch_file_size),
            int(self.batch_folder_size),
            self.batch_max_lines,
            max_open_batches=self.batch_max_open,
        )
