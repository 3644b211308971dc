"""What a search has found stays, wherever its workers, their writing or their machine stop."""

import csv
import errno
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from energytl import cli
from energytl.study import search as search_module
from energytl.study import storage as storage_module
from energytl.study.report import search_report
from energytl.study.search import Search, run_search, uninterrupted
from energytl.study.settings import StudyError
from energytl.study.storage import open_storage, put_back

FINISHED = "SELECT count(*) FROM trials WHERE state = 'COMPLETE'"
NO_BEAT_S = 600.0


def in_a_fork(action) -> int:
    """How a process ends that does this: its exit code, or the signal that killed it, negative."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_write(number: int, act) -> None:
    """From now on in this process, `act` is called just before the number-th transaction that writes is committed."""
    writes, count = [False], [0]

    def executes(connection, cursor, statement, *_):
        writes[0] = writes[0] or statement.split()[0] in ("INSERT", "UPDATE", "DELETE")

    def commits(connection):
        count[0] += writes[0]
        if writes[0] and count[0] == number:
            act()
        writes[0] = False

    def rolls_back(connection):
        writes[0] = False

    event.listen(Engine, "before_cursor_execute", executes)
    event.listen(Engine, "commit", commits)
    event.listen(Engine, "rollback", rolls_back)


@pytest.fixture
def begun(study, tmp_path, formula, monkeypatch):
    """begun(name): a search of two trials, the first of which has finished."""
    monkeypatch.setattr(storage_module, "identity", lambda study: {"recipe": "the same"})  # saves parsing it
    first = Search(study(), tmp_path / "first", None, 1, heartbeat_s=NO_BEAT_S)
    run_search(first)

    def copied(name: str, heartbeat_s: float = NO_BEAT_S) -> Search:
        shutil.copytree(first.folder, tmp_path / name)
        return Search(first.study, tmp_path / name, None, 2, heartbeat_s=heartbeat_s)

    return copied


def states(search: Search) -> list[TrialState]:
    with open_storage(None, search.folder) as storage:
        return [trial.state for trial in optuna.load_study(storage=storage, study_name="tiny_search").trials]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_killed_between_any_two_of_its_writes_is_replaced(begun, capsys):
    """SIGKILL just before each commit; the next command waits for no one but as long as it says."""
    said = []
    for number in range(1, 100):
        killed = begun(f"killed{number}")

        def die(search=killed, number=number):
            at_write(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            run_search(search)

        if in_a_fork(die) == 0:
            break
        run_search(Search(killed.study, killed.folder, None, 2, heartbeat_s=0.02))
        assert states(killed) == [TrialState.COMPLETE] * 2, number
        said.append(capsys.readouterr().err)
    assert number > 8  # sign of life; creation, signature, 3 values, 2 attributes and the end of a trial
    assert sum("trial 1 is repeated: its worker gave no sign of life for 0.08 s" in text for text in said) == number - 3


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ctrl_c_at_any_write_leaves_no_trial_that_others_wait_for(begun):
    for number in range(1, 100):
        search = begun(f"interrupted{number}")

        def interrupted(search=search, number=number):
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
            at_write(number, lambda: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                run_search(search)

        if in_a_fork(interrupted) != 0:  # it was not interrupted
            break
        assert TrialState.RUNNING not in states(search), number
    assert number > 8
    assert states(search) == [TrialState.COMPLETE] * 2


def test_ctrl_c_is_only_put_off(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = []
    try:
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            steps.append("written")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["written"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("number", range(1, 40, 4))
def test_a_file_whose_making_was_killed_is_made_to_the_end(number, tmp_path):
    def die():
        count = Counter()

        @event.listens_for(Engine, "before_cursor_execute")
        def executes(*_):
            count["statements"] += 1
            if count["statements"] == number:
                os.kill(os.getpid(), signal.SIGKILL)

        with open_storage(None, tmp_path):
            pass

    assert in_a_fork(die) in (-signal.SIGKILL, 0)
    with open_storage(None, tmp_path) as storage:
        optuna.create_study(storage=storage, study_name="a").add_trial(optuna.create_trial(value=1.0))
    with open_storage(None, tmp_path) as storage:
        assert len(optuna.load_study(storage=storage, study_name="a").trials) == 1


@pytest.fixture
def logged(begun, tmp_path):
    """A search, its file, and the log of the last trial's last transaction alone, as a killed process leaves them."""
    search = begun("logged")
    with search.open() as trials:
        trial = trials.ask()
        search.study.suggest(trial)
        trial.set_user_attr("numbers", {"accuracy": 0.9, "energy_paper": 100.0})
        with closing(sqlite3.connect(search.folder / "trials.db")) as other:
            assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        trials.tell(trial, [-0.9, 2.0], TrialState.COMPLETE)
        copies = tmp_path / "as_killed"
        copies.mkdir()
        for name in ("trials.db", "trials.db-wal"):
            shutil.copy(search.folder / name, copies)
    return search, (copies / "trials.db").read_bytes(), (copies / "trials.db-wal").read_bytes()


def test_a_log_cut_or_changed_at_any_byte_keeps_what_was_finished_before(logged, tmp_path):
    """At every byte of the last transaction: the trials before it are there, and it is there or not, but whole."""
    _, file, log = logged
    path, log_path = tmp_path / "cut.db", tmp_path / "cut.db-wal"
    path.write_bytes(file)
    log_path.write_bytes(log)

    def finished() -> int:
        (tmp_path / "cut.db-shm").unlink(missing_ok=True)
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            ((found,),) = database.execute(FINISHED)
        return found

    assert finished() == 2
    with log_path.open("r+b", buffering=0) as stream:
        for place in range(0, len(log), 5):
            stream.seek(place)
            stream.write(bytes([log[place] ^ 255]))
            assert finished() == 1, place
            stream.seek(place)
            stream.write(log[place : place + 1])
        assert finished() == 2
        for end in reversed(range(len(log))):
            stream.truncate(end)
            assert finished() == 1, end


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.0])
def test_a_search_goes_on_after_a_cut_log(share, logged):
    search, file, log = logged
    (search.folder / "trials.db").write_bytes(file)
    (search.folder / "trials.db-wal").write_bytes(log[: int(share * len(log))])
    run_search(Search(search.study, search.folder, None, 3, heartbeat_s=0.02))
    assert states(search) == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_copy_from_the_log_into_the_file_may_stop_anywhere(share, logged):
    search, before, log = logged
    folder = search.folder
    for name, content in (("trials.db", before), ("trials.db-wal", log)):
        (folder / name).write_bytes(content)
    with closing(sqlite3.connect(folder / "trials.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    after = (folder / "trials.db").read_bytes()
    place = int(share * len(after))
    (folder / "trials.db").write_bytes(after[:place] + before[place:])
    (folder / "trials.db-wal").write_bytes(log)
    assert states(search) == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[: len(content) // 2],
        lambda content: content[: len(content) // 2 // 4096 * 4096],
        lambda content: b"",
        lambda content: b"no such file " + content[13:],
        lambda content: content[:4096] + bytes(len(content) - 4096),
    ],
    ids=["20 bytes", "half", "whole pages", "all", "head", "zeros"],
)
def test_a_damaged_file_is_named_with_what_to_do(damage, begun):
    search = begun("damaged")
    path = search.folder / "trials.db"
    (search.folder / "trials").mkdir(exist_ok=True)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StudyError) as raised, search.open():
        pass
    said = str(raised.value)
    assert said.startswith(f"the file {path} is damaged (")
    assert "move it away, and the same command begins anew" in said
    assert "\n" not in said
    for name in ("trials.db", "trials.db-wal", "trials.db-shm"):
        (search.folder / name).unlink(missing_ok=True)
    run_search(search)
    assert states(search) == [TrialState.COMPLETE] * 2


def test_a_full_disk_under_the_file_ends_in_advice_and_loses_nothing(begun, monkeypatch, formula_of):
    search = begun("full")

    def fill(case, *_):
        (case_values := dict(formula_of(case.values)))["accuracy"] = 0.9
        return search_module.Outcome(case_values, [[0.0] * 100_000], 0.0)

    monkeypatch.setattr(search_module, "run_trial", fill)
    limit = lambda connection, _: connection.execute("PRAGMA max_page_count=60")  # noqa: E731
    from sqlalchemy.pool import Pool

    event.listen(Pool, "connect", limit)
    try:
        with pytest.raises(StudyError, match="disk is full; what is finished is kept: make room, and the same command"):
            run_search(search)
    finally:
        event.remove(Pool, "connect", limit)
    monkeypatch.undo()
    assert TrialState.RUNNING not in states(search)


def test_the_journal_of_an_earlier_version_is_named(study, tmp_path):
    (tmp_path / "journal.log").write_text("{}\n")
    with (
        pytest.raises(StudyError, match=r"journal\.log holds the trials of an earlier version"),
        open_storage(None, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///", "it names no file"),
        ("sqlite://", "it names no file"),
        ("sqlite:///:memory:", "it names no file"),
        ("sqlite:///no/such/folder/x.db", "cannot be used"),
        ("", "cannot be used"),
        ("postgres://me@host/db", "allowed: postgresql://USER"),
        ("postgresql://me:secret@host:port/db", "allowed: postgresql://USER"),
        ("mysql://me:secret@host/db", "No module named 'MySQLdb'"),
        ("http://host/db", "allowed: postgresql://USER"),
        ("grpc://", "cannot be used"),
        ("postgresql://me:sec{0}ret@127.0.0.1:1/db", "127.0.0.1"),
    ],
)
def test_storages_that_are_none_are_refused_in_one_line(url, said, tmp_path):
    with pytest.raises(StudyError) as raised, open_storage(url, tmp_path):
        pass
    text = str(raised.value)
    assert text.startswith(f"storage {url.split(':')[0]}")
    assert said in text
    assert "\n" not in text
    assert "sec" not in text.replace("second", "")


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with (
        pytest.raises(StudyError, match=r"psycopg is not installed: pip install 'energytl\[postgresql\]'"),
        open_storage("postgresql://me:secret@127.0.0.1:1/none", tmp_path),
    ):
        pass


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_no_two_processes_take_the_same_trial(tmp_path):
    with open_storage(None, tmp_path) as storage:
        trials = optuna.create_study(storage=storage, study_name="a")
        for _ in range(30):
            put_back(trials, trials.ask())
    children = []
    for child in range(3):
        process = os.fork()
        if process == 0:
            try:
                with open_storage(None, tmp_path) as storage:
                    trials = optuna.load_study(storage=storage, study_name="a")
                    taken = [str(trials.ask().number) for _ in range(10)]
                (tmp_path / f"{child}.txt").write_text(" ".join(taken))
            finally:
                os._exit(0)
        children.append(process)
    for process in children:
        os.waitpid(process, 0)
    taken = [int(number) for child in range(3) for number in (tmp_path / f"{child}.txt").read_text().split()]
    assert sorted(taken) == list(range(30))


def test_a_file_without_right_to_write_is_named(begun, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied", "trials/0001")

    monkeypatch.setattr(search_module, "run_trial", refuse)
    search = begun("refused")
    with pytest.raises(StudyError, match=r"Permission denied: 'trials/0001'; what is finished is kept"):
        run_search(search)
    assert states(search) == [TrialState.COMPLETE, TrialState.WAITING]


@pytest.mark.parametrize("content", ["[1]", "{}", '[{"number": 1}]', "not JSON", '[{"params": 1, "numbers": []}]'])
def test_a_front_of_other_content_is_named_and_the_report_goes_on(content, begun, capsys):
    search = begun("other")
    (search.folder / "front").mkdir()
    (search.folder / "front" / "front.json").write_text(content)
    folder = search.folder.rename(search.folder.with_name("tiny_search"))
    assert cli.main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert str(folder / "front" / "front.json") in said
    assert "1 trials: 1 measured" in said


def test_formulas_in_names_and_errors_are_text_in_the_table(begun, monkeypatch):
    def fail(*_):
        raise RuntimeError('=HYPERLINK("https://example.org")')

    monkeypatch.setattr(search_module, "run_trial", fail)
    search = begun("formulas")
    run_search(search)
    folder = search.folder.rename(search.folder.with_name("tiny_search"))
    assert cli.main(["report", str(folder)]) == 0
    with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert second["error"] == """'=HYPERLINK("https://example.org")"""
    assert float(first["hardware.rho"]) > 0


def test_two_reports_at_once_are_both_written(begun):
    folder = begun("reported").folder
    folder = folder.rename(folder.with_name("tiny_search"))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(search_report, [folder, folder])
    assert first == second
    assert list((folder / "tensorboard").glob("trial_*"))
