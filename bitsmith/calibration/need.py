"""What a run takes of this machine's memory, held against every limit of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bitsmith.calibration.footprint import ADDRESSES, Run, calibration_footprint, torch_memory
from bitsmith.errors import ResourceError
from bitsmith.system.pressure import MemoryNow, Room, memory_now, rooms
from bitsmith.system.sizes import human_bytes

LEAST_TOKENS = 2048  # of a calibration that is offered
_THREAD = 72 << 20  # addresses of a thread: its stack, and its own part of the heap


@dataclass(frozen=True)
class Need:
    """What a run takes.

    peak: bytes that the process has in memory at most while the run goes on
    disk: bytes of temporary files, beside the outputs
    threads: threads that it starts; -1 if they run
    now: what the process takes before the run
    after_blocks: whether the peak comes after all blocks, in a training of the whole model
    """

    peak: int
    disk: int
    threads: int
    now: MemoryNow
    after_blocks: bool = False

    def more(self, room: Room) -> int:
        """Bytes that it takes beyond what the process has now, as a limit counts them."""
        further = max(self.peak - self.now.resident, 0)
        if not room.address:
            return further
        addresses = self.now.address - self.now.resident
        return further + max(ADDRESSES - addresses, 0) + _THREAD * (self.threads + 1)

    def missing(self) -> tuple[Room, int] | None:
        """The limit that it does not keep, and the bytes that it takes there; None if it keeps all."""
        for room in rooms():
            more = self.more(room)
            if more > room.nbytes:
                return room, more
        return None

    def said(self, found: tuple[Room, int]) -> str:
        """Why it does not fit, as a sentence. found: see `missing`"""
        room, more = found
        counted = "of addresses " if room.address else ""
        return (
            f"this run takes about {human_bytes(more)} {counted}more than bitsmith has now (peak "
            f"{human_bytes(self.peak)}), but only {human_bytes(room.nbytes)} are {room.limit}."
        )


def need_of_pass(run: Run, threads: int) -> Need:
    """What one pass over a text takes."""
    now = memory_now()
    memory, disk = calibration_footprint(run)
    return Need(now.resident + torch_memory() + memory, disk, threads, now)


def check_pass(run: Run, threads: int) -> None:
    """Raise ResourceError if one pass over a text takes more memory than is free, with options that would fit."""
    need = need_of_pass(run, threads)
    found = need.missing()
    if found is None:
        return
    offers = list(_offers(run, threads))
    fit = f"These would fit: {'; '.join(offers)}." if offers else "No options of this run make it fit."
    raise ResourceError(f"{need.said(found)} {fit} --force starts it all the same.")


def _offers(run: Run, threads: int) -> Iterator[str]:
    if need_of_pass(replace(run, memory=0), threads).missing() is None:
        yield "--memory=1MB (hidden states go to disk)"
    tokens = run.record.tokens // 2
    while tokens >= LEAST_TOKENS:
        if need_of_pass(replace(run, record=replace(run.record, tokens=tokens)), threads).missing() is None:
            yield f"--calibration-tokens={tokens}"
            return
        tokens //= 2
