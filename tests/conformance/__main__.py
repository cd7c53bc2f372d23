"""`python -m tests.conformance URL`: judge a server, rule by rule."""

import argparse
import sys
from pathlib import Path

from tests.conformance.report import Rule, Verdict, judge, markdown, rules_of, summary
from tests.conformance.rules import (
    agents,
    chat,
    claude_code,
    clients,
    completions,
    decisions,
    embeddings,
    endpoints,
    errors,
    events,
    extensions,
    hostile,
    messages,
    ollama,
    responses,
    resumption,
    structure,
    tokens,
)
from tests.conformance.target import Target


def all_rules() -> list[Rule]:
    """Return every rule of the kit."""
    modules = (
        events,
        completions,
        chat,
        structure,
        responses,
        agents,
        resumption,
        messages,
        claude_code,
        embeddings,
        decisions,
        ollama,
        endpoints,
        errors,
        hostile,
        extensions,
        tokens,
        *clients.MODULES,
    )
    return [rule for module in modules for rule in rules_of(module)]


def main() -> None:
    """Judge the server that the command line names; the exit status is 1 if a rule did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("url", help="where the server listens, without /v1")
    parser.add_argument("--api-key")
    parser.add_argument("--model", help="the first one that the server lists, if left out")
    parser.add_argument("--only", default="", help="rules whose group or name has this text")
    parser.add_argument("--title", help="of the section in the page")
    parser.add_argument("--markdown", type=Path, help="append the table to this page")
    arguments = parser.parse_args()
    target = Target(arguments.url, arguments.api_key, arguments.model)
    rules = [rule for rule in all_rules() if arguments.only.lower() in f"{rule.group} {rule.name}".lower()]

    def show(verdict: Verdict) -> None:
        mark = "FAILED" if verdict.reason else "ok    "
        print(f"{mark} {verdict.rule.group}: {verdict.rule.name} ({verdict.seconds:.1f} s) {verdict.reason}")

    verdicts = judge(rules, target, show)
    target.close()
    print()
    for group, num_held, num_rules in summary(verdicts):
        print(f"{num_held:>4} of {num_rules:>3}  {group}")
    if arguments.markdown:
        with arguments.markdown.open("a") as page:
            page.write("\n" + markdown(arguments.title or arguments.url, verdicts))
    sys.exit(any(verdict.reason for verdict in verdicts))


if __name__ == "__main__":
    main()
