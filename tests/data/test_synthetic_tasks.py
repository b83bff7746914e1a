"""The retrieval task: its rows as batches, and the teacher's short prompts beside them."""

from gkd.configuration.task_files import read_task
from gkd.data import pipeline
from gkd.metrics.metrics import final_answer
from gkd.synthetic import retrieval


def test_the_teacher_reads_the_short_context_of_the_same_question():
    task = read_task("configs/tasks/retrieval_teacher_inputs.gin")
    batch = next(pipeline.training_batches(task, "train", 8, 200, 5, seed=3))
    assert batch["inputs_cut"] == batch["targets_cut"] == batch["teacher_inputs_cut"] == 0
    made = {q.input: q for q in retrieval.questions("train", 10_000)}
    columns = ("encoder_input_tokens", "teacher_encoder_input_tokens", "decoder_target_tokens")
    for row in zip(*(batch[name].tolist() for name in columns), strict=True):
        question, evidence, target = (task.vocabulary.decode(ids) for ids in row)
        assert (evidence, target) == (made[question].evidence, made[question].target)


def test_the_answer_is_graded_as_a_number():
    (question,) = retrieval.questions("test", 1)
    number = question.target.removeprefix("#### ")
    assert final_answer([question.target], [f"#### {number}"])["exact_match"] == 100
    assert final_answer([question.target], ["#### 12345"])["exact_match"] == 0
