"""What a row's TASK_PROMPT asks for: a task of the model, or any prompt, as the original takes it.

Knows tasks and texts; nothing about requests and models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from florence.errors import TaskError
from florence.types.declared import find_declared
from florence.types.tasks import INPUT_SLOT, TASKS, Input, Task, TaskTable, prompt_task

TAKE_ANY: Final = "let FLORENCE_PROMPTS=any take prompts as they are"


@dataclass(frozen=True, slots=True)
class AcceptedPrompts:
    """`tasks`: those of a model. `anything`: whether any other TASK_PROMPT is accepted as a prompt."""

    tasks: TaskTable
    anything: bool = False

    def find(self, prompt: str, text: str | None) -> tuple[Task, str | None]:
        """The task that a row asks for, and its text. Raises TaskError.

        A prompt that is not a task becomes one whose token is the prompt, and whose answer is text.
        """
        if self.anything and prompt not in self.tasks:
            return _as_original(prompt, text), None
        return find_declared(self.tasks, prompt, TAKE_ANY), text


def _as_original(prompt: str, text: str | None) -> Task:
    """The prompt, with its text behind it, as Microsoft's processor reads it: word for word, except that a
    built-in task's token is replaced by that task's sentence. Raises TaskError for a token that must stand
    alone."""
    sentence = prompt + (text or "")
    for task in TASKS.values():
        if task.input is Input.NONE and task.token in sentence:
            raise TaskError(f"{task.token} stands alone in TASK_PROMPT and takes no text")
    inside = next((task for task in TASKS.values() if task.token in sentence), None)
    if inside is not None:
        sentence = inside.prompt.replace(INPUT_SLOT, sentence.replace(inside.token, ""))
    return replace(prompt_task("any"), token=prompt, prompt=sentence)  # `prompt` may be blank
