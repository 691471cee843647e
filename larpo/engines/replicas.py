"""Engines side by side, each in a process of its own on GPUs of its own: for a model that fits one GPU faster than to
split it. Prompts are dealt by their batch, so what an engine without a `stream` makes is the same with any number."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait

from larpo.config.sections import EngineParams
from larpo.engines import Completion, Finished, Sampling, build_engine, stream
from larpo.errors import ParameterError
from larpo.models.resolve import Model

DEVICES = "CUDA_VISIBLE_DEVICES"


class Replicas:
    """`engine.replicas` engines behind the interface of one."""

    def __init__(self, checkpoint: Model, params: EngineParams, seed: int):
        single = params.model_copy(update={"replicas": 1})
        self.count, self.batch_size = params.replicas, params.batch_size
        devices = visible_devices(params)
        context = multiprocessing.get_context("spawn")
        self.connections: list[Connection] = []
        before = os.environ.get(DEVICES)
        for own in devices:
            here, there = context.Pipe()
            if own:
                os.environ[DEVICES] = ",".join(own)  # read when the process imports torch
            context.Process(target=work, args=(there, checkpoint, single, seed), daemon=True).start()
            there.close()
            self.connections.append(here)
        if any(devices):
            os.environ.pop(DEVICES) if before is None else os.environ.update({DEVICES: before})
        self._facts, *_ = [self._receive(connection) for connection in self.connections]  # when all are ready

    def facts(self) -> dict[str, object]:
        return self._facts | {"replicas": self.count}

    def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        """See `larpo.engines.Engine`: one batch, by one of them."""
        self.connections[0].send((prompts, sampling, [seed], [*range(len(prompts))], len(prompts)))
        made = dict(iter(lambda: self._receive(self.connections[0]), None))
        return [made[i] for i in range(len(prompts))]

    def stream(
        self, prompts: list[list[int]], sampling: Sampling, seeds: list[int], places: list[int]
    ) -> Iterator[Finished]:
        """See `larpo.engines.StreamingEngine`."""
        size = self.batch_size
        for i, connection in enumerate(self.connections):
            share = [place for place in places if place // size % self.count == i]
            connection.send((prompts, sampling, seeds, share, size))
        busy = set(self.connections)
        while busy:
            for connection in wait(busy):
                finished = self._receive(connection)
                if finished is None:
                    busy.discard(connection)
                else:
                    yield finished

    def _receive(self, connection: Connection):
        try:
            message = connection.recv()
        except EOFError:
            raise RuntimeError(f"engine {self.connections.index(connection) + 1} of {self.count} has ended") from None
        if isinstance(message, BaseException):
            raise message
        return message


def visible_devices(params: EngineParams) -> list[list[str]]:
    """The GPUs of each replica, as many as its tensor parallelism takes; none on a machine without.

    Raises
    ------
    ParameterError
        There are fewer than that.
    """
    import torch

    if not (found := torch.cuda.device_count()):
        return [[] for _ in range(params.replicas)]
    given = os.environ.get(DEVICES)
    names = given.split(",")[:found] if given else [*map(str, range(found))]
    each = int(params.options.get("tensor_parallel_size", 1))
    if params.replicas * each > len(names):
        raise ParameterError(
            "engine.replicas", f"{params.replicas} on {each} GPU each, found {len(names)}; lower it, or show more GPUs"
        )
    return [names[i * each : (i + 1) * each] for i in range(params.replicas)]


def work(connection: Connection, checkpoint: Model, params: EngineParams, seed: int) -> None:
    """In a replica's process: answer until the other side is gone. An error is sent and ends it."""
    try:
        engine = build_engine(params, checkpoint, seed)
        connection.send(engine.facts())
        while True:
            prompts, sampling, seeds, places, size = connection.recv()
            for finished in stream(engine, prompts, sampling, seeds, places, size):
                connection.send(finished)
            connection.send(None)
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the node must end with it
        connection.send(error)
