"""What a row's TASK_PROMPT asks for: a task of the model, or any prompt, as the original takes it.

Knows tasks and texts; nothing about requests and models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from florence.errors import TaskError
from florence.types.declared import ways_out
from florence.types.tasks import INPUT_SLOT, TASKS, Input, Task, TaskTable, prompt_task


@dataclass(frozen=True, slots=True)
class AcceptedPrompts:
    """The tasks of a model, and whether another TASK_PROMPT is taken (`anything`)."""

    tasks: TaskTable
    anything: bool = False

    def find(self, prompt: str, text: str | None) -> tuple[Task, str | None]:
        """The task that a row asks for, and its text. Raises TaskError.

        Of a prompt that is no task, the answer is its text, under that prompt.
        """
        if self.anything and prompt not in self.tasks:
            return _as_original(prompt, text), None
        try:
            return self.tasks.resolve(prompt), text
        except TaskError as error:
            other = "let FLORENCE_PROMPTS=any take prompts as they are"
            raise TaskError(f"{error}{ways_out(prompt, other)}") from None


def _as_original(prompt: str, text: str | None) -> Task:
    """The prompt, with its text behind it, as Microsoft's processor reads it: word for word, but that it puts
    the sentence of a built-in task in place of that task's token."""
    sentence = prompt + (text or "")
    for task in TASKS.values():
        if task.input is Input.NONE and task.token in sentence:
            raise TaskError(f"{task.token} stands alone in TASK_PROMPT and takes no text")
    inside = next((task for task in TASKS.values() if task.token in sentence), None)
    if inside is not None:
        sentence = inside.prompt.replace(INPUT_SLOT, sentence.replace(inside.token, ""))
    return replace(prompt_task("any"), token=prompt, prompt=sentence)  # it may be blank
