"""Several processes on one machine: the cases of a recipe side by side, and what each worker keeps to."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from energytl.progress import Bar
from energytl.quiet import quiet_libraries
from energytl.recipe import Case, RecipeError
from energytl.run import run_case


def waiting_last(cases: Sequence[Case], trainings: Sequence[str | None]) -> list[Case]:
    """The cases, but last those that would wait for another's training, which they share.

    >>> waiting_last(["a", "same as a", "b"], ["1", "1", "2"])
    ['a', 'b', 'same as a']
    """
    waits = [name is not None and name in trainings[:place] for place, name in enumerate(trainings)]
    return [case for late in (False, True) for case, wait in zip(cases, waits, strict=True) if wait == late]


def run_cases(cases: dict[int, Case], total: int, folder: Path, resume: bool, workers: int) -> None:
    """Run cases, one after the other or several at a time, with a bar; what workers print goes to <case>.log.

    Args:
        cases: by their places among the recipe's.
        total: how many the recipe has.
        folder: logs/<recipe>.
        resume: take up what earlier runs have left; see `run_case`.
        workers: processes.

    Raises:
        ValueError: what the first case that fails says, those that have begun go on to their end; or if a worker was
            killed.
    """
    if workers == 1 or len(cases) == 1:
        for place, case in cases.items():
            print(f"{case.name} ({place + 1} of {total})", file=sys.stderr)
            run_case(case, place, folder, resume)
        return
    workers = min(workers, len(cases))
    with Bar(total=len(cases), desc=folder.name, unit="case") as bar, pool_of(workers) as pool:
        started = {
            pool.submit(_run, case, place, folder, resume, workers, number % workers): case
            for number, (place, case) in enumerate(cases.items())
        }
        try:
            for future in as_completed(started):
                future.result()
                bar.update()
        except BrokenProcessPool as error:
            raise RecipeError(
                "a worker was killed, as for want of memory; to go on, repeat the command with --resume"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)  # waits for those that have begun


def _run(case: Case, place: int, folder: Path, resume: bool, workers: int, index: int) -> None:
    limit_threads(workers)
    with silently(folder / f"{case.name}.log"):
        run_case(on_own_gpu(case, index), place, folder, resume)


@contextmanager
def silently(log: Path) -> Iterator[None]:
    """What is printed goes to this file."""
    quiet_libraries()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Fresh processes that end with this one."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that was killed and could not say so."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def limit_threads(workers: int) -> None:
    """This process's share of the processor, if there are several."""
    if workers > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def wants_processes(case: Case) -> bool:
    """Whether Lightning would start processes of its own, each with this process's command line."""
    settings = case.settings.trainer
    devices = len(settings.devices) if isinstance(settings.devices, list) else settings.devices
    return int(settings.num_nodes or 1) > 1 or devices not in ("auto", 1, "1", None)


def on_own_gpu(case: Case, index: int) -> Case:
    """The case on the worker's own GPU, where there are several and the recipe does not choose."""
    gpus, settings = torch.cuda.device_count(), case.settings.trainer
    if gpus > 1 and settings.accelerator in ("auto", "gpu", "cuda") and settings.devices in ("auto", 1, "1"):
        settings.devices = [index % gpus]
    return case
