"""The policy store: whole after any kill, and one clear line for what does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_policy import beside, change_manifest, install_policy, write_policy

from agent.policies.errors import NoSuchPolicy, PolicyRefused, StoreDamaged
from agent.policies.store import PolicyStore
from policy.release.folder import read_policy_folder


def previous(store: PolicyStore) -> str | None:
    path = store.folder / "active.json"
    found: str | None = json.loads(path.read_bytes())["previous"] if path.exists() else None
    return found


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies")


def test_an_empty_store_has_nothing_and_says_so(store: PolicyStore) -> None:
    assert store.active() is None
    assert previous(store) is None
    assert store.versions() == []
    store.sweep()
    with pytest.raises(NoSuchPolicy, match="no policy is active yet"):
        store.resolve("active")
    with pytest.raises(NoSuchPolicy, match="installed versions: none"):
        store.resolve("3")
    with pytest.raises(NoSuchPolicy, match="nothing to roll back to"):
        store.roll_back()


def test_active_local_and_versions_are_resolved(store: PolicyStore) -> None:
    one, two = install_policy(store, 1), install_policy(store, 2)
    local = write_policy(store.folder / "local", version=0)
    store.use(1)
    assert store.resolve("active") == one
    assert store.resolve(2) == store.resolve("2") == two
    assert store.resolve("local") == local
    assert store.versions() == [1, 2]


def test_activating_again_keeps_the_way_back(store: PolicyStore) -> None:
    install_policy(store, 1)
    install_policy(store, 2)
    store.use(1)
    store.use(2)
    store.use(2)
    assert (store.active(), previous(store)) == ("2", "1")


def test_rolling_back_goes_one_step_and_not_in_circles(store: PolicyStore) -> None:
    install_policy(store, 1)
    install_policy(store, 2)
    store.use(1)
    store.use(2)
    assert store.roll_back() == "1"
    assert store.resolve("active") == store.folder / "1"
    with pytest.raises(NoSuchPolicy, match="nothing to roll back to"):
        store.roll_back()


@pytest.mark.parametrize("name", ["../1", "1/../2", "", ".incoming-x", "a" * 65, "active"])
def test_a_name_never_leads_out_of_the_folder(store: PolicyStore, name: str) -> None:
    install_policy(store, 1)
    with pytest.raises(NoSuchPolicy):
        store.use(name)


def test_a_wrong_digest_is_not_installed(store: PolicyStore) -> None:
    staged = beside(store)
    write_policy(staged, version=1)
    onnx = staged / "policy.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"\x00")
    with pytest.raises(PolicyRefused, match=r"policy\.onnx has SHA-256 .* download it again"):
        store.install(staged, 1)
    assert store.versions() == []
    assert not store.folder.exists()


def test_a_file_cut_short_is_named_with_both_sizes(store: PolicyStore) -> None:
    staged = beside(store)
    write_policy(staged, version=1)
    onnx = staged / "policy.onnx"
    onnx.write_bytes(onnx.read_bytes()[:-1])
    with pytest.raises(PolicyRefused, match="bytes, its manifest says"):
        store.install(staged, 1)


def test_a_manifest_of_another_version_is_not_installed(store: PolicyStore) -> None:
    staged = beside(store)
    write_policy(staged, version=7)
    with pytest.raises(PolicyRefused, match="of version 7, announced was 8"):
        store.install(staged, 8)


def test_a_version_is_never_replaced_by_another_of_that_number(store: PolicyStore) -> None:
    path = install_policy(store, 1)
    before = read_policy_folder(path).onnx_digest
    with pytest.raises(PolicyRefused, match="already installed as version 1"):
        install_policy(store, 1, multiplications=1)
    assert read_policy_folder(path).onnx_digest == before
    assert install_policy(store, 1) == path  # the same one again is no error


def test_a_policy_damaged_on_disk_is_neither_activated_nor_rolled_back_to(
    store: PolicyStore,
) -> None:
    for version in (1, 2):
        install_policy(store, version)
        store.use(version)
    change_manifest(store.folder / "1", files={})
    with pytest.raises(PolicyRefused, match=r"has no policy\.onnx"):
        store.roll_back()
    with pytest.raises(PolicyRefused):
        store.use(1)
    assert store.active() == "2"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"active": 3, "previous": null}', "{}"])
def test_a_damaged_choice_is_one_clear_line(store: PolicyStore, content: str) -> None:
    install_policy(store, 1)
    (store.folder / "active.json").write_text(content)
    with pytest.raises(StoreDamaged, match=r"active\.json .*delete it"):
        store.resolve("active")


def test_pruning_keeps_the_newest_the_active_the_previous_and_the_local(
    store: PolicyStore,
) -> None:
    for version in range(1, 7):
        install_policy(store, version)
    write_policy(store.folder / "local", version=0)
    store.use(1)
    store.use(3)
    assert store.prune(keep=2) == ["2", "4"]
    assert store.versions() == [1, 3, 5, 6]
    assert store.resolve("local").is_dir()


class Killer:
    """The process of killing.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[2] / "support" / "killing.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def killed_at(self, step: int, folder: Path, operation: str, *argument: object) -> bool:
        request = {
            "folder": str(folder),
            "operation": operation,
            "argument": argument,
            "step": step,
        }
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the operation failed"
        return bool(json.loads(answer))


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    killer = Killer()
    yield killer
    with killer.process as process:
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("operation", ["install", "use", "roll_back", "prune"])
def test_killed_between_any_two_steps_the_store_is_the_old_one_or_the_new_one(
    tmp_path: Path, killer: Killer, operation: str
) -> None:
    deaths = 0
    while True:
        store = PolicyStore(tmp_path / f"{operation}-{deaths}")
        for version in (1, 2, 4):
            install_policy(store, version)
        store.use(1)
        if operation == "roll_back":
            store.use(2)
        staged = beside(store)
        write_policy(staged, version=3)
        argument = {"install": (str(staged),), "use": (2,), "prune": (1,)}.get(operation, ())
        before = (store.active(), previous(store))
        after = {"use": ("2", "1"), "roll_back": ("1", None)}.get(operation, before)
        killed = killer.killed_at(deaths + 1, store.folder, operation, *argument)
        # A process that starts afterwards finds a whole store, sweeps, and can do it again.
        fresh = PolicyStore(store.folder)
        choice = (fresh.active(), previous(fresh))
        assert choice in (before, after) if killed else choice == after
        for installed in fresh.versions():
            read_policy_folder(fresh.resolve(installed))
        fresh.sweep()
        assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]
        read_policy_folder(fresh.resolve("active"))
        fresh.use(1)
        if not killed:
            break
        deaths += 1
    assert deaths >= 4, "the kills did not reach the steps"


def test_a_reader_sees_the_old_choice_or_the_new_one_while_it_changes(store: PolicyStore) -> None:
    install_policy(store, 1)
    install_policy(store, 2)
    store.use(1)

    def change() -> None:
        writer = PolicyStore(store.folder)
        for _ in range(50):
            writer.use(2)
            writer.use(1)

    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    while thread.is_alive():
        seen.add(store.resolve("active").name)
    thread.join()
    assert seen <= {"1", "2"}
    assert seen
