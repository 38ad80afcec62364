"""A person's yes or no between registration and the champion's place, and the move that follows a yes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context, Param
from airflow.sdk.exceptions import AirflowSkipException

from jora_tasks.airflow.operators import COMMAND, Call, StageOperator, run_spec

NO_ANSWER = "no one"
_REASON = "reason"


class PromotionApproval(ApprovalOperator):
    """Asks whether a registered version may become champion, with the verdict; no answer in time means no.

    Skipped, and what follows with it, where the registration awaits no approval.

    Args:
      registration: what the task before returned.
    """

    template_fields: Sequence[str] = ("subject", "body", "registration")

    def __init__(self, *, registration: Any, **kwargs: Any) -> None:
        super().__init__(subject="Promotion", defaults=self.REJECT, **kwargs)
        self.registration = registration

    @property
    def serialized_params(self) -> dict[str, dict[str, Any]]:
        """The one field of the answer; the run's own settings, which Airflow adds, are none of its."""
        reason = Param("", type="string", description="Why; kept in the record of champions.", source="task")
        return {_REASON: reason.serialize()}

    def execute(self, context: Context) -> Any:
        told = self.registration
        if not told["awaiting_approval"]:
            raise AirflowSkipException(
                f"{told['name']} version {told['version']} awaits no approval: registry.promotion is "
                f"{told['promotion']}, and the gate says {told['verdict']['alias']}."
            )
        self.subject = f"Make {told['name']} version {told['version']} the champion?"
        self.body = question(told)
        self.response_timeout = timedelta(hours=run_spec(context).registry.approval_hours)
        return super().execute(context)


class PromoteOperator(StageOperator):
    """``jora promote`` of an approved version, in place of the champion that its verdict was about.

    Args:
      registration: what the registration returned.
      approval: what the approval returned.
    """

    template_fields: Sequence[str] = (*StageOperator.template_fields, "registration", "approval")

    def __init__(self, *, registration: Any, approval: Any, **kwargs: Any) -> None:
        super().__init__(stage="promote", **{"command": COMMAND} | kwargs)
        self.registration = registration
        self.approval = approval

    def _prepare(self, context: Context) -> Call:
        told, answer = self.registration, self.approval
        champion = told["verdict"].get("champion")
        reason = str((answer.get("params_input") or {}).get(_REASON) or "").strip()
        self.arguments = [
            str(told["version"]),
            *("--set", f"name={told['name']}"),
            f"--expect={champion['version'] if champion else 'none'}",
            f"--by={who(answer)}",
            f"--reason={reason or 'Approved in Airflow.'}",
        ]
        return super()._prepare(context)


def who(answer: Mapping[str, Any]) -> str:
    """The name of the person who answered."""
    user = answer.get("responded_by_user") or {}
    return str(user.get("name") or user.get("id") or NO_ANSWER)


def question(registration: Mapping[str, Any]) -> str:
    """The approval's text in Markdown: each check, what it asked and what it found, and where to read on."""
    verdict = registration["verdict"]
    name, version = registration["name"], registration["version"]
    champion = verdict.get("champion")
    rows = [
        f"| {_plain(check['name'])} | {_plain(check['expected'])} | {_plain(check['actual'])} "
        f"| {'passed' if check['passed'] else '**failed**'} |"
        for check in verdict["checks"]
    ]
    return "\n".join(
        [
            f"The gate passed **{_plain(name)} version {version}**. "
            + (
                f"It would replace version {champion['version']}."
                if champion
                else "There is no champion yet."
            ),
            "",
            "| check | expected | actual | |",
            "|---|---|---|---|",
            *rows,
            "",
            f"[Scores, verdict and lineage](/jora/adapters/{quote(name)}/versions/{version})",
        ]
    )


def _plain(value: Any) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    text = " ".join(str(value).split())
    text = re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", "\u200b", text)  # no address becomes a link
    return re.sub(r"([\\`*_{}\[\]<>()#+!|&~])", r"\\\1", text)
