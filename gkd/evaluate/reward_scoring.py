"""The reward of many outputs, as training's: by their texts, or by a model on the mesh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from gkd.infer.batched_program import BatchedProgram, padded
from gkd.metrics.reward_functions import ModelReward
from gkd.runs import model_loading
from gkd.runs.model_loading import LoadedModel


def load_reward_model(
    reward: Any,
    checkpoint: str | None,
    architecture: Any,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    task: Any,
    with_params: bool = True,
) -> LoadedModel | None:
    """The model of a reward that is one; None for every other reward.

    Raises:
      ValueError, FileNotFoundError: no checkpoint is named, or none is there.
    """
    if not isinstance(reward, ModelReward):
        return None
    return model_loading.load_model(
        "REWARD_MODEL", mesh, rules, task, architecture, checkpoint,
        with_params=with_params, **model_loading.inference_dtypes(None, mesh, architecture),
    )  # fmt: skip


class RewardScorer:
    """Judges outputs, each with its prompt."""

    def __init__(
        self,
        reward: Any,
        reward_model: LoadedModel | None,
        vocabulary: Any,
        mesh: Mesh,
        target_length: int,
        buckets: Sequence[int],
        batch_size: int,
    ) -> None:
        """Prepares; nothing is compiled yet.

        Args:
          reward: a function of gkd.metrics.reward_functions, or a reward model.
          reward_model: its model, from `load_reward_model`.
          vocabulary: the task's vocabulary.
          mesh: mesh on which the model runs.
          target_length: tokens of an output at most.
          buckets, batch_size: lengths and rows of prompts, as in `BatchedProgram`.
        """
        self._reward, self._reward_model, self._length = reward, reward_model, target_length
        self._padding_id = vocabulary.pad_id
        if reward_model is not None:
            scorer = reward.build(vocabulary)

            def program(params, _, prompts, outputs):
                return scorer.score(reward_model.model, params, prompts, outputs)

            self._batched = BatchedProgram(program, reward_model, mesh, buckets, batch_size)

    def scores(
        self,
        prompts: Sequence[str],
        prompt_ids: Sequence[Sequence[int]],
        texts: Sequence[str],
        output_ids: Sequence[Sequence[int]],
        references: Sequence[str],
    ) -> list[float]:
        """A reward for every output.

        Args:
          prompts, prompt_ids: the prompt of every output, as text and as tokens through EOS.
          texts, output_ids: the outputs.
          references: the reference of every output.
        """
        if self._reward_model is None:
            return [float(reward) for reward in self._reward(prompts, texts, references)]
        scores = [0.0] * len(texts)

        def rows(positions):
            return (padded([output_ids[i] for i in positions], self._length, self._padding_id),)

        for part, values in self._batched.run(self._reward_model.params, (), prompt_ids, rows):
            for position, value in zip(part, values, strict=False):
                scores[position] = float(value)
        return scores
