"""Elasticsearch's simple_query_string as an FTS5 expression.

`a b` and `a + b` need both, `a | b` either, `-a` excludes, `"a b"` is a phrase, `a*` a prefix,
parentheses group. Operators of different kinds apply from left to right, as in Lucene's
SimpleQueryParser: `a b | c d` is `((a b) | c) d`. Not carried over: fuzziness and slop (`~2` is
read and dropped). Every word reaches FTS5 as a quoted string, so that no text is a malformed
expression; what holds no letter or digit is left out.
"""

import re
from dataclasses import dataclass, replace

MAX_WORDS = 1024  # Elasticsearch's own limit on clauses
MAX_DEPTH = 48  # of nested operators; FTS5's parser gives up at about twice that

# Elasticsearch's standard analyzer makes each ideograph and hiragana a token; FTS5 would keep a run
# of them whole.
_IDEOGRAPHS = re.compile("([\u3041-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_SLOP = re.compile(r"~\d*$")


def tokenizable(text: str) -> str:
    """Text with spaces around ideographs and without what SQLite cannot store (lone surrogates,
    NUL).
    """
    text = text.encode("utf-8", "replace").decode().replace("\0", " ")
    return _IDEOGRAPHS.sub(r" \1 ", text)


@dataclass(frozen=True)
class Match:
    """Documents that match an FTS5 expression, or (`negated`) all others; no expression matches
    nothing.
    """

    expression: str | None
    negated: bool = False
    operator: str | None = None  # the expression's outermost operator, None for a phrase
    depth: int = 0

    def complement(self) -> "Match":
        """All other documents."""
        return replace(self, negated=not self.negated)

    def within(self, operator: str) -> str:
        """The expression as an operand: in parentheses unless it is a phrase or continues the same
        operator.
        """
        return str(self.expression) if self.operator in (None, operator) else f"({self.expression})"


NOTHING = Match(None)


def parse(query: str) -> Match:
    """The documents that a query asks for; never raises."""
    parser = _Parser(query)
    result = parser.group(0)
    if result is None or parser.words > MAX_WORDS or result.depth > MAX_DEPTH:
        return NOTHING
    return result


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.words = text, 0, 0

    def group(self, depth: int) -> Match | None:
        """Read up to the closing parenthesis or the end; None when there is nothing to search
        for.
        """
        result: Match | None = None
        operator, negate = "AND", False
        while self.at < len(self.text) and self.words <= MAX_WORDS:
            character = self.text[self.at]
            if character.isspace() or character in "+|":
                self.at += 1
                if character in "+|":
                    operator = "OR" if character == "|" else "AND"
                continue
            if character == "-":
                self.at += 1
                negate = not negate
                continue
            if character == ")":
                self.at += 1
                if depth:
                    break
                continue
            if character == "(":
                self.at += 1
                if depth >= MAX_DEPTH:
                    continue
                found = self.group(depth + 1)
            else:
                found = self.phrase() if character == '"' else self.word()
            if found is not None:
                found = found.complement() if negate else found
                result = found if result is None else _combine(result, found, operator)
            operator, negate = "AND", False
        return result

    def phrase(self) -> Match | None:
        text, closed = [], False
        self.at += 1
        while self.at < len(self.text) and not closed:
            character = self.text[self.at]
            if character == "\\" and self.at + 1 < len(self.text):
                self.at += 1
                text.append(self.text[self.at])
            elif character == '"':
                closed = True
            else:
                text.append(character)
            self.at += 1
        slop = re.compile(r"~\d*").match(self.text, self.at)
        if slop:
            self.at = slop.end()
        return self._leaf("".join(text), prefix=False)

    def word(self) -> Match | None:
        text, escaped = [], False
        while self.at < len(self.text):
            character = self.text[self.at]
            if character == "\\" and self.at + 1 < len(self.text):
                self.at += 1
                text.append(self.text[self.at])
                escaped = True
            elif character.isspace() or character in '"|+()':
                break
            else:
                text.append(character)
                escaped = False
            self.at += 1
        word = "".join(text)
        if not escaped:
            word = _SLOP.sub("", word)
        return self._leaf(word, prefix=word.endswith("*") and not escaped)

    def _leaf(self, text: str, prefix: bool) -> Match | None:
        self.words += 1
        text = tokenizable(text)
        if not any(character.isalnum() for character in text):
            return None
        quoted = '"' + text.replace('"', '""') + '"'
        return Match(f"{quoted} *" if prefix else quoted)


def _combine(left: Match, right: Match, operator: str) -> Match:
    """FTS5 knows only `a NOT b`: complements are carried outwards by De Morgan's laws."""
    if operator == "OR" and (left.negated or right.negated):  # a or b = not (not a and not b)
        return _combine(left.complement(), right.complement(), "AND").complement()
    if left.negated and right.negated:
        return _combine(left.complement(), right.complement(), "OR").complement()
    if left.negated != right.negated:
        left, right, operator = (right, left, "NOT") if left.negated else (left, right, "NOT")
    second = (
        f"({right.expression})"
        if operator == "NOT" and right.operator == "NOT"
        else right.within(operator)
    )
    nested = max(
        left.depth + (left.operator not in (None, operator) or operator == "NOT"),
        right.depth + (right.operator not in (None, operator)),
    )
    return Match(f"{left.within(operator)} {operator} {second}", operator=operator, depth=nested)
