"""School mathematics with worked solutions in LaTeX, for the demo's `word-problems` source.

Templates of our own, like `demo_stories`, in the dress of textbook mathematics: inline `$...$`,
`align*` environments and a boxed result. They leave out the kinds of question that the packaged
benchmark items ask (domains of square roots, determinants of products, equal total weights, ratios
in dependent systems). Everything is a pure function of the generator passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import comb, gcd
from random import Random

from .stories import Problem

TRIPLES = ((3, 4, 5), (5, 12, 13), (8, 15, 17), (7, 24, 25), (20, 21, 29), (9, 40, 41))


def _nonzero(rng: Random, low: int, high: int) -> int:
    return rng.choice([n for n in range(low, high + 1) if n])


def _fraction(value: Fraction) -> str:
    sign = "-" if value < 0 else ""
    if value.denominator == 1:
        return str(value)
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def _term(coefficient: int, symbol: str, first: bool = False) -> str:
    """One signed term of a polynomial; nothing for a zero coefficient."""
    if coefficient == 0:
        return ""
    sign = "-" if coefficient < 0 else ("" if first else "+")
    size = abs(coefficient)
    body = symbol if symbol and size == 1 else f"{size}{symbol}"
    return f"{sign}{body}" if first else f" {sign} {body}"


def _boxed(value: object) -> str:
    return rf"\boxed{{{value}}}"


def linear(rng: Random) -> Problem:
    a, x, b = _nonzero(rng, 2, 12), _nonzero(rng, -12, 12), _nonzero(rng, -30, 30)
    letter = rng.choice("xyntk")
    left, right = f"{a}{letter}{_term(b, '')}", a * x + b
    move = f"Subtracting {b} from" if b > 0 else f"Adding {-b} to"
    return f"Solve for ${letter}$: ${left} = {right}$.", (
        f"{move} both sides of the equation gives ${a}{letter} = {right - b}$. "
        f"Dividing both sides by {a}, we get ${letter} = {_boxed(x)}$."
    )


def quadratic(rng: Random) -> Problem:
    p, q = _nonzero(rng, -9, 9), _nonzero(rng, -9, 9)
    left = f"x^2{_term(-(p + q), 'x')}{_term(p * q, '')}"
    factors = f"(x{_term(-p, '')})(x{_term(-q, '')})"
    ask = rng.choice((f"Find all solutions of ${left} = 0$.", f"Find the roots of ${left}$."))
    low, high = sorted((p, q))
    roots = str(p) if p == q else f"{low}, {high}"
    return ask, (
        f"We look for two numbers whose sum is ${p + q}$ and whose product is ${p * q}$. They are "
        f"${p}$ and ${q}$. Therefore, the expression factors as ${left} = {factors}$, so the "
        f"solutions are ${_boxed(roots)}$."
    )


def system(rng: Random) -> Problem:
    x, y = rng.randint(-8, 8), rng.randint(-8, 8)
    a, b = rng.randint(2, 7), rng.randint(2, 7)
    one, two = a * x + b * y, a * x - b * y
    eqs = f"{a}x + {b}y &= {one},\\\\\n{a}x - {b}y &= {two}."
    return f"Find $x$ if\n\\begin{{align*}}\n{eqs}\n\\end{{align*}}", (
        f"If we add the two equations, the terms in $y$ cancel and we obtain\n"
        f"\\[{2 * a}x = {one + two}.\\]\nDividing both sides by {2 * a}, we find that "
        f"$x = {_boxed(x)}$."
    )


def line(rng: Random) -> Problem:
    x, y, dx = rng.randint(-9, 9), rng.randint(-9, 9), _nonzero(rng, 1, 9)
    dy = _nonzero(rng, -9, 9)
    slope = _fraction(Fraction(dy, dx))
    return f"What is the slope of the line through $({x},{y})$ and $({x + dx},{y + dy})$?", (
        rf"The slope is the change in $y$ divided by the change in $x$, which is "
        rf"$\frac{{{y + dy} - ({y})}}{{{x + dx} - ({x})}} = \frac{{{dy}}}{{{dx}}}$. "
        rf"Therefore, the slope is ${_boxed(slope)}$."
    )


def series(rng: Random) -> Problem:
    first, step, n = rng.randint(1, 20), rng.randint(2, 9), rng.randint(5, 30)
    last = first + (n - 1) * step
    total = n * (first + last) // 2
    return (
        f"Find the sum of the first {n} terms of the arithmetic sequence that starts with "
        f"${first}, {first + step}, {first + 2 * step}, \\ldots$."
    ), (
        f"The common difference is ${step}$, so the last term is ${first} + {n - 1} \\cdot {step} "
        f"= {last}$. The sum is the number of terms times the average of the first and the last "
        f"term, which is\n\\[\\frac{{{n}({first} + {last})}}{{2}} = {_boxed(total)}.\\]"
    )


def remainder(rng: Random) -> Problem:
    m, a, b = rng.randint(5, 19), rng.randint(20, 300), rng.randint(20, 300)
    ra, rb = a % m, b % m
    return f"What is the remainder when ${a} \\cdot {b}$ is divided by ${m}$?", (
        rf"We have that ${a} \equiv {ra} \pmod{{{m}}}$ and ${b} \equiv {rb} \pmod{{{m}}}$. "
        rf"Therefore, ${a} \cdot {b} \equiv {ra} \cdot {rb} = {ra * rb} \equiv "
        rf"{_boxed(ra * rb % m)} \pmod{{{m}}}$."
    )


def divisor(rng: Random) -> Problem:
    g = rng.randint(2, 18)
    a, b = g * rng.randint(2, 12), g * rng.randint(2, 12)
    steps, high, low = [], max(a, b), min(a, b)
    while low:
        steps.append(f"{high} &= {high // low} \\cdot {low} + {high % low}")
        high, low = low, high % low
    listed = ",\\\\\n".join(steps)
    return f"Find the greatest common divisor of ${a}$ and ${b}$.", (
        f"We use the Euclidean algorithm:\n\\begin{{align*}}\n{listed}.\n\\end{{align*}}\n"
        f"The last step leaves no remainder, so the greatest common divisor is the number we "
        f"divided by, which is ${_boxed(gcd(a, b))}$."
    )


def powers(rng: Random) -> Problem:
    base, m, n = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 8)
    k = rng.randint(1, 3)
    power = m + n - (m + n - k)
    return (
        rf"Simplify $\frac{{{base}^{{{m}}} \cdot {base}^{{{n}}}}}{{{base}^{{{m + n - k}}}}}$."
    ), (
        rf"When we multiply powers of the same base, we add the exponents, so the numerator is "
        rf"${base}^{{{m} + {n}}} = {base}^{{{m + n}}}$. Dividing by ${base}^{{{m + n - k}}}$, we "
        rf"subtract the exponents, which gives ${base}^{{{power}}} = {_boxed(base**power)}$."
    )


def composition(rng: Random) -> Problem:
    a, b = _nonzero(rng, 2, 7), _nonzero(rng, -9, 9)
    c, d, x = _nonzero(rng, 2, 7), _nonzero(rng, -9, 9), rng.randint(-5, 6)
    inner = c * x + d
    value = a * inner + b
    return (
        f"Let $f(x) = {a}x{_term(b, '')}$ and $g(x) = {c}x{_term(d, '')}$. "
        f"What is the value of $f(g({x}))$?"
    ), (
        f"First we find $g({x}) = {c} \\cdot ({x}){_term(d, '')} = {inner}$. Then "
        f"$f(g({x})) = f({inner}) = {a} \\cdot ({inner}){_term(b, '')} = {_boxed(value)}$."
    )


def chance(rng: Random) -> Problem:
    red, blue, green = (rng.randint(1, 9) for _ in range(3))
    total = red + blue + green
    answer = _fraction(Fraction(red, total))
    return (
        f"A bag contains {red} red, {blue} blue and {green} green counters. One counter is drawn "
        f"at random. What is the probability that it is red?"
    ), (
        rf"There are ${red} + {blue} + {green} = {total}$ counters in total, and {red} of them are "
        rf"red. Therefore, the probability is $\frac{{{red}}}{{{total}}} = {_boxed(answer)}$."
    )


def fractions(rng: Random) -> Problem:
    a, b = (Fraction(rng.randint(1, 9), rng.randint(2, 9)) for _ in range(2))
    common = a.denominator * b.denominator // gcd(a.denominator, b.denominator)
    na, nb = a.numerator * common // a.denominator, b.numerator * common // b.denominator
    return f"Compute ${_fraction(a)} + {_fraction(b)}$. Express the answer in lowest terms.", (
        rf"The common denominator is ${common}$. Therefore, ${_fraction(a)} + {_fraction(b)} = "
        rf"\frac{{{na}}}{{{common}}} + \frac{{{nb}}}{{{common}}} = "
        rf"\frac{{{na + nb}}}{{{common}}} = {_boxed(_fraction(a + b))}$."
    )


def choose(rng: Random) -> Problem:
    n, k = rng.randint(5, 14), rng.randint(2, 3)
    top = r" \cdot ".join(str(n - i) for i in range(k))
    bottom = r" \cdot ".join(str(k - i) for i in range(k))
    return f"In how many ways can a committee of {k} people be chosen from {n} people?", (
        rf"The order in which the people are chosen does not matter, so the number of ways is "
        rf"$\binom{{{n}}}{{{k}}} = \frac{{{top}}}{{{bottom}}} = {_boxed(comb(n, k))}$."
    )


def triangle(rng: Random) -> Problem:
    scale = rng.randint(1, 5)
    a, b, c = (scale * side for side in rng.choice(TRIPLES))
    return f"The legs of a right triangle are ${a}$ and ${b}$. How long is the hypotenuse?", (
        rf"By the Pythagorean Theorem, the hypotenuse has length $\sqrt{{{a}^2 + {b}^2}} = "
        rf"\sqrt{{{a * a} + {b * b}}} = \sqrt{{{c * c}}} = {_boxed(c)}$."
    )


def inequality(rng: Random) -> Problem:
    a, b, bound = rng.randint(2, 9), _nonzero(rng, -20, 20), rng.randint(-6, 9)
    right, interval = a * bound + b, rf"(-\infty,{bound}]"
    return f"Find all values of $x$ such that ${a}x{_term(b, '')} \\le {right}$.", (
        rf"We have ${a}x \le {right - b}$. Since ${a}$ is positive, dividing does not change the "
        rf"inequality, so $x \le {bound}$. In interval notation this is "
        rf"${_boxed(interval)}$."
    )


def imaginary(rng: Random) -> Problem:
    a, b, c, d = (_nonzero(rng, -6, 6) for _ in range(4))
    real, imag = a * c - b * d, a * d + b * c
    value = (str(real) if real else "") + _term(imag, "i", first=not real) or "0"
    one, two = f"{a}{_term(b, 'i')}", f"{c}{_term(d, 'i')}"
    return f"Compute $({one})({two})$.", (
        f"Expanding the product, we get\n\\begin{{align*}}\n({one})({two}) &= {a * c}"
        f"{_term(a * d + b * c, 'i')}{_term(b * d, 'i^2')}\\\\\n&= {_boxed(value)},\n"
        f"\\end{{align*}}\nsince $i^2 = -1$."
    )


FAMILIES: tuple[Callable[[Random], Problem], ...] = (
    linear,
    quadratic,
    system,
    line,
    series,
    remainder,
    divisor,
    powers,
    composition,
    chance,
    fractions,
    choose,
    triangle,
    inequality,
    imaginary,
)


def algebra(rng: Random) -> Iterator[Problem]:
    """An endless stream of (question, worked solution in LaTeX), families in random order."""
    while True:
        yield rng.choice(FAMILIES)(rng)
