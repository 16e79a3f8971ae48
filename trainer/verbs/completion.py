"""The verb completion: verbs, groups with their members, and keys, completed in bash."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.config.compose import CONF, GROUPS, all_keys
from trainer.errors import EXIT_DONE, UserError
from trainer.verbs.help import VERB_HELP

# "=" is taken out of the word breaks, so that bash hands over and replaces a whole KEY=VALUE.
SCRIPT = """\
_trainer() {
    COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
    compopt -o nospace
    mapfile -t COMPREPLY < <("${COMP_WORDS[0]}" completion words "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null)
}
complete -o default -F _trainer trainer"""


def completion(words: Sequence[str]) -> int:
    """Print the script, or with `words PREFIX` what the prefix may become. Returns: exit code. Raises: UserError."""
    if not words:
        print(SCRIPT)
    elif words[0] == "words":
        print("\n".join(candidates(words[1] if len(words) > 1 else "")))
    else:
        raise UserError(f"completion {words[0]}: takes no arguments")
    return EXIT_DONE


def candidates(prefix: str) -> list[str]:
    """What a word that begins so may become; a key ends with its "="."""
    group, equals, _ = prefix.partition("=")
    if equals:
        members = sorted(file.stem for file in (CONF / group).glob("*.yaml")) if group in GROUPS else []
        return [f"{group}={member}" for member in members if f"{group}={member}".startswith(prefix)]
    keys = [f"{key}=" for key in all_keys()]
    return [word for word in [*(f"{verb} " for verb in VERB_HELP), *keys] if word.startswith(prefix)]
