"""vLLM's own OffloadingConnector where there is no GPU: all of it, but for the copying, which is done here at once."""

from typing import Any

from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class Offload(CPUOffloadingSpec):
    """Named by `spec_name` and `spec_module_path`. vLLM's copies with CUDA streams, and refuses to start without."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if not self._worker:
            self._worker = Copies(kv_caches, self.num_chunks)
        return self._worker


class Copies(OffloadingWorker):
    """Done when they are asked for; said to be done in the next step, as on a GPU. One block a chunk."""

    latest: "Copies"

    def __init__(self, kv_caches: Any, chunks: int) -> None:
        self.here = [one.tensor for one in kv_caches.tensors]
        self.there = [one.new_zeros((chunks, one.shape[1])) for one in self.here]
        self._done: list[tuple[int, int]] = []
        self.loaded = self.stored = 0
        Copies.latest = self

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.stored += self._copy(job_id, self.here, src_spec, self.there, dst_spec)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        self.loaded += self._copy(job_id, self.there, src_spec, self.here, dst_spec)
        return True

    def get_finished(self) -> list[TransferResult]:
        self._done = [(job_id, waits - 1) for job_id, waits in self._done]
        over = [TransferResult(job_id, True) for job_id, waits in self._done if waits < 0]
        self._done = [(job_id, waits) for job_id, waits in self._done if waits >= 0]
        return over

    def wait(self, job_ids: set[int]) -> None:
        return

    def _copy(self, job_id: int, source: list[Any], which: Any, target: list[Any], where: Any) -> int:
        for one, other in zip(source, target, strict=True):
            other[where.block_ids] = one[which.block_ids]
        self._done.append((job_id, 1))
        return len(which.block_ids)
