"""The API server's part: what another server gave out is given out again, as vLLM's own output, and one event for each
that it was in; then this server's tokens follow. vLLM's parsers, detokenizer, stop strings and counts see all of it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from types import SimpleNamespace
from typing import Any

from vllm_plugin import logs
from vllm_plugin.restore import CHOICES, IDS, KEY, Given
from vllm_plugin.restore.argument import ArgumentRefused, Chunks, read
from vllm_plugin.restore.limits import refused_field
from vllm_plugin.wrapping import wrap_own

log = logs.logger("emission")


class Emission:
    """Of one client of vLLM's engines (`AsyncLLM`). why_not: asked, why nothing is continued now; "" where it is.

    seeds: whether seeded requests are.
    """

    def __init__(self, client: Any, why_not: Callable[[], str], seeds: Callable[[], bool]) -> None:
        self._client, self._why_not, self._seeds = client, why_not, seeds
        self._apart = _apart()
        wrap_own(client, "generate", self._generate)
        wrap_own(client.output_processor, "add_request", self._add_request)

    def _generate(self, original: Callable[..., Any], prompt: Any, sampling_params: Any, *args: Any, **kw: Any) -> Any:
        """Raises vLLM's error for a bad request, here and now: while its answer may still have a status of its own."""
        extra = getattr(sampling_params, "extra_args", None)
        if extra and KEY in extra:
            sampling_params = copy(sampling_params)
            sampling_params.extra_args = extra | {KEY: self._read(extra[KEY], prompt, sampling_params)}
        return original(prompt, sampling_params, *args, **kw)

    def _read(self, said: Any, prompt: Any, params: Any) -> Given:
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind

        if isinstance(said, Given):
            return said  # the canary's
        if why_not := self._why_not():
            raise VLLMValidationError(f"this server continues nothing: {why_not}", parameter=f"vllm_xargs.{KEY}")
        if not isinstance(prompt, dict) or prompt.get("type") != "token":
            raise VLLMValidationError(
                "a prompt that is not all tokens is not continued: nobody has tried it", parameter=f"vllm_xargs.{KEY}"
            )
        whole = params.output_kind == RequestOutputKind.FINAL_ONLY
        if refused := refused_field(params, whole=whole, seeds=self._seeds()):
            raise VLLMValidationError(f"{refused[0]} is not continued: {refused[1]}", parameter=f"vllm_xargs.{KEY}")
        config = self._client.model_config
        room = config.max_model_len - len(prompt["prompt_token_ids"])
        try:
            choices = read(
                said, choices=params.n, tokens_max=min(room, params.max_tokens or room),
                vocabulary=config.get_vocab_size(),
            )  # fmt: skip
        except ArgumentRefused as refusal:
            raise VLLMValidationError(str(refusal), parameter=f"vllm_xargs.{KEY}") from None
        return Given({CHOICES: choices})

    def _add_request(
        self, original: Callable[..., None], request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0,
        queue: Any = None, **kw: Any,
    ) -> None:  # fmt: skip
        params = request.sampling_params
        said = (getattr(params, "extra_args", None) or {}).get(KEY)
        if not isinstance(said, Given):
            return original(request, prompt, parent_req, request_index, queue, **kw)
        chunks = said[CHOICES][request_index]
        # Choices may share one object: what goes to the engine is of this one.
        params = request.sampling_params = copy(params)
        params.extra_args = {name: value for name, value in params.extra_args.items() if name != KEY}
        original(request, prompt, parent_req, request_index, queue, **kw)
        if not chunks:
            return None
        params.prompt_logprobs = None  # of an echo: they are not computed for an event that is dropped
        ids = [token for chunk in chunks for token in chunk]
        if self._emit(request, chunks, ids, queue):
            request.abort_immediately = True  # the engine has nothing to do for it
        else:
            params.extra_args[KEY] = {IDS: ids}
        log.info("holdfast.continued", request=request.request_id, tokens=len(ids), ended=request.abort_immediately)
        return None

    def _emit(self, request: Any, chunks: Chunks, ids: Sequence[int], queue: Any) -> bool:
        """Returns whether that was all of this choice: whoever gave it out was lost before it could say so."""
        from vllm.v1.engine import EngineCoreOutput

        processor = self._client.output_processor
        state = processor.request_states[request.request_id]
        reason, stop_reason = _finish(request, ids, self._client.model_config.max_model_len)
        interval, state.stream_interval = state.stream_interval, 1
        with self._apart.kept(queue):
            for number, chunk in enumerate(chunks, 1):
                last = number == len(chunks)
                processor.process_outputs([EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=list(chunk),
                    new_logprobs=_no_logprobs(state, chunk),
                    new_prompt_logprobs_tensors=_no_prompt_logprobs(state, request) if number == 1 else None,
                    finish_reason=reason if last else None,
                    stop_reason=stop_reason if last else None,
                )])  # fmt: skip
                if request.request_id not in processor.request_states:  # by a stop string, too
                    return True
        state.stream_interval, state.sent_tokens_offset = interval, len(ids)
        state.is_prefilling = True  # to vLLM's statistics, as its first token from here is still to come
        return False


def _finish(request: Any, ids: Sequence[int], tokens_max: int) -> tuple[Any, Any]:
    """The engine's own judgement on its last token: why it ended, and at what; None where it goes on."""
    from vllm.v1.core.sched.utils import check_stop
    from vllm.v1.request import RequestStatus

    params = request.sampling_params
    then: Any = SimpleNamespace(
        pooling_params=None, sampling_params=params, output_token_ids=ids, num_output_tokens=len(ids),
        num_tokens=len(request.prompt_token_ids) + len(ids), max_tokens=params.max_tokens, status=None,
        stop_reason=None,
    )  # fmt: skip
    check_stop(then, tokens_max)
    return RequestStatus.get_finished_reason(then.status), then.stop_reason


def _no_logprobs(state: Any, ids: Sequence[int]) -> Any:
    """Those were not sent along: of each token one, of itself, and zero. The gateway drops them."""
    import numpy as np
    from vllm.v1.outputs import LogprobsLists

    if state.logprobs_processor.num_logprobs is None:
        return None
    tokens = np.asarray(ids, dtype=np.int64)[:, None]
    return LogprobsLists(tokens, np.zeros(tokens.shape, np.float32), np.ones(len(ids), np.int64), None)


def _no_prompt_logprobs(state: Any, request: Any) -> Any:
    """The same of the prompt's, all but its first token."""
    import torch
    from vllm.v1.outputs import LogprobsTensors

    if state.logprobs_processor.num_prompt_logprobs is None:
        return None
    tokens = torch.tensor(request.prompt_token_ids[1:])[:, None]
    return LogprobsTensors(tokens, torch.zeros(tokens.shape), torch.ones(len(tokens), dtype=torch.int64))


def _apart() -> Any:
    from vllm.v1.engine.output_processor import RequestOutputCollector

    class Apart(RequestOutputCollector):
        """Keeps what was given out before apart, also from what follows, where vLLM makes one output of those that
        come faster than they are fetched: its parsers would see other events than on the server that was lost.

        later: outputs behind the next one. before: how many of all are of before. emits: whether such are put now.
        """

        later: deque[Any]
        before: int
        emits: bool

        @classmethod
        @contextmanager
        def kept(cls, queue: Any) -> Iterator[None]:
            if not isinstance(queue, cls):
                queue.__class__, queue.later, queue.before = cls, deque(), 0
            queue.emits = True
            try:
                yield
            finally:
                queue.emits = False

        def put(self, output: Any) -> None:
            if isinstance(output, Exception):
                self.later.clear()
            else:
                self.before += self.emits
                if self.output is not None and (self.before or self.later):
                    self.later.append(output)
                    return
            super().put(output)

        def get_nowait(self) -> Any:
            return None if self.later else self._fetched(super().get_nowait())

        async def get(self) -> Any:
            if self.later:
                await asyncio.sleep(0)  # others' turn: thousands may be here at once
            return self._fetched(await super().get())

        def _fetched(self, output: Any) -> Any:
            self.before -= self.before > 0 and output is not None
            if self.later and self.output is None:
                super().put(self.later.popleft())
            return output

    return Apart
