"""Values of parameters without a default."""

REQUIRED = {
    "infer": ["--model=m", "--output=o"],
    "convert": ["a", "b"],
    "new": ["d"],
    "plan": ["--topology=cpu:8"],
}
