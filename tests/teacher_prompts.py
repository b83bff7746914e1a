"""Settings that let the teacher of the tiny run read a problem with its solution."""

LENGTH = 37  # tokens of a teacher's prompt; a student's has 24, a target 12
OVERRIDES = (
    "TASK=@teacher_inputs.with_teacher_inputs()",
    "teacher_inputs.with_teacher_inputs.task=@tasks.arithmetic()",
    "teacher_inputs.with_teacher_inputs.preprocessor=@teacher_inputs.template()",
    "teacher_inputs.template.prompt='{inputs} {targets}'",
    f"teacher_inputs.with_teacher_inputs.length={LENGTH}",
)
