"""Time of reading a batch of random rows from a bank / of index_select on a tensor in memory.

50,000 rows of 512 float16 numbers, batches of 512. The bank looks up each sample's row by its id, verifies it, and
reads it from the mapped file (which is in the page cache after the first round) or from memory, if it is held there.
"""

import numpy as np
import torch
from measure import Script, Work, ratios

from crossdistill.bank.bank import Bank, BankKey
from crossdistill.bank.fill import fill
from crossdistill.bank.rows import BankRows

ROWS, WIDTH, BATCH = 50_000, 512, 512
BATCHES = 200


def filled(script: Script, values: torch.Tensor) -> Bank:
    """A bank of these rows; ids differ from row numbers, so that the lookup is measured."""
    ids = torch.arange(ROWS) * 2 + 1
    key = BankKey(weights="w", data="d", rows="r", want="logits", shape=(WIDTH,), dtype="float16")
    bank = Bank.create(script.scratch, key, BankRows(ids), {})
    fill({"bank": bank}, lambda ids, _view: {"bank": (values[(ids - 1) // 2].float(), None)}, lambda: None, print)
    return bank


def main() -> None:
    """Measure reads from disk and from memory."""
    script = Script(__file__)
    torch.manual_seed(0)
    values = torch.randn(ROWS, WIDTH).half()
    bank = filled(script, values)
    rows = [torch.randint(ROWS, (BATCH,), device=script.device) for _ in range(BATCHES)]
    ids = [each * 2 + 1 for each in rows]
    plain = values.to(script.device)

    def read() -> None:
        for each in ids:
            bank.read(each)

    def index() -> None:
        for each in rows:
            plain.index_select(0, each)

    assert torch.equal(bank.read(ids[0]), plain[rows[0]])
    assert np.load(bank.path / "values.npy", mmap_mode="r").dtype == np.float16
    works: list[Work] = [read, index]
    name = f"bank: random batches of {BATCH} out of {ROWS:,} x {WIDTH} float16"
    script.ratio(f"{name}, on disk / a plain index in memory", ratios(*script.alternate(works, 15)), 1.5)
    bank.hold(script.device)
    script.ratio(f"{name}, held / a plain index in memory", ratios(*script.alternate(works, 15)), 1.5)


if __name__ == "__main__":
    main()
