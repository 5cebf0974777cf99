"""Word problems with worked solutions in plain English, for the demo's `word-problems` source.

Each family is a small template of our own that draws its people, things and numbers from a
generator and works the answer out in sentences, one calculation at a time, because that is the
kind of text a model has to predict when it is scored on worked arithmetic. No family restates a
benchmark's question; the harvest checks that with an n-gram pass (`decontamination`).
Everything is a pure function of the generator passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

Problem = tuple[str, str]  # question, worked solution


def _each(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _each(
    "Amara Ben Carla Dmitri Elena Farid Grace Hugo Ines Jonas Keiko Liam Maya Nadia Oscar Priya "
    "Quentin Rosa Samir Tessa Umar Vera Wendell Ximena Yusuf Zoe Albert Bianca Cedric Dana Emil "
    "Fiona George Hannah Ivan Judith Kofi Lena Marta Noah Omar Paula Ruben Sara Tomas Una"
)
THINGS = _each(
    "apples books pencils marbles stickers cookies shells coins stamps cards balloons oranges "
    "buttons beads ribbons flowers bottles tickets candles plates lemons photos keys magnets "
    "badges pears muffins notebooks stones eggs cups roses peaches crayons puzzles posters"
)
BOXES = _each("boxes bags baskets jars shelves crates drawers trays packets rows")
DAYS = _each("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
GOODS = _each("pen hat mug kite lamp scarf spoon notebook ticket toy plant cake puzzle shirt")
FRIENDS = ("friends", "cousins", "classmates", "neighbours", "children", "teammates")
WORDS = _each("zero one two three four five six seven eight nine ten eleven twelve")

GAINS = (
    ("{who} found {k} more", "After finding {k} more"),
    ("{who} bought another {k}", "After buying {k} more"),
    ("{who} was given {k} by a friend", "After getting {k} from a friend"),
    ("another {k} arrived in the mail", "With the {k} that arrived"),
)
LOSSES = (
    ("{who} gave {k} to a neighbour", "After giving {k} away"),
    ("{who} lost {k} on the way home", "After losing {k}"),
    ("{who} sold {k} at the market", "After selling {k}"),
    ("{k} of them were broken", "Without the {k} broken ones"),
    ("{who} used {k} for a project", "After using {k}"),
)


def _written(rng: Random, number: int) -> str:
    """Small numbers appear now as a word, now as digits."""
    return WORDS[number] if number < len(WORDS) and rng.random() < 0.4 else str(number)


def changes(rng: Random) -> Problem:
    """A stock that grows and shrinks over several events."""
    who, thing, have = rng.choice(NAMES), rng.choice(THINGS), rng.randint(8, 90)
    told = [f"{who} had {have} {thing}."]
    worked = [rng.choice((f"{who} started with {have} {thing}.", f"At first {who} had {have}."))]
    for day in sorted(rng.sample(range(7), rng.randint(1, 3))):
        losing = have > 4 and rng.random() < 0.5
        change = rng.randint(2, have - 1) if losing else rng.randint(2, 60)
        event, after = rng.choice(LOSSES if losing else GAINS)
        told.append(f"On {DAYS[day]}, " + event.format(who=who, k=_written(rng, change)) + ".")
        new = have - change if losing else have + change
        sign = "-" if losing else "+"
        worked.append(f"{after.format(k=change)}, there were {have} {sign} {change} = {new}.")
        have = new
    ask = rng.choice((f"How many {thing} does {who} have now?", f"How many {thing} are left?"))
    return " ".join((*told, ask)), " ".join((*worked, f"The answer is {have}."))


def groups(rng: Random) -> Problem:
    """Equal groups and something left over or taken away."""
    who, thing, box = rng.choice(NAMES), rng.choice(THINGS), rng.choice(BOXES)
    count, each, extra = rng.randint(3, 12), rng.randint(3, 25), rng.randint(2, 30)
    total = count * each
    question = f"{who} has {_written(rng, count)} {box} with {each} {thing} in each of them."
    step = f"There are {count} {box} of {each}, so that is {count} * {each} = {total} {thing}."
    if rng.random() < 0.5 and extra < total:
        question += f" {extra} {thing} are taken out. How many {thing} remain?"
        return question, (
            f"{step} When {extra} are taken out, {total} - {extra} = {total - extra} remain. "
            f"The answer is {total - extra}."
        )
    question += f" There are also {extra} loose {thing}. How many {thing} are there in total?"
    return question, (
        f"{step} Together with the {extra} loose ones there are "
        f"{total} + {extra} = {total + extra}. The answer is {total + extra}."
    )


def shopping(rng: Random) -> Problem:
    """Two kinds of goods paid from a sum of money."""
    who, (first, second) = rng.choice(NAMES), rng.sample(GOODS, 2)
    a, b, price_a, price_b = (rng.randint(2, 9) for _ in range(4))
    cost_a, cost_b = a * price_a, b * price_b
    spent = cost_a + cost_b
    money = spent + rng.randint(1, 40)
    question = (
        f"{who} has ${money} and buys {_written(rng, a)} {first}s for ${price_a} each and "
        f"{_written(rng, b)} {second}s for ${price_b} each. How much money is left?"
    )
    return question, (
        f"{a} {first}s for {price_a} dollars each cost {a} x {price_a} = {cost_a} dollars. "
        f"{b} {second}s for {price_b} dollars each cost {b} x {price_b} = {cost_b} dollars. "
        f"In total {who} spent {cost_a} + {cost_b} = {spent} dollars. "
        f"So {who} has {money} - {spent} = {money - spent} dollars left. "
        f"The answer is {money - spent}."
    )


def daily(rng: Random) -> Problem:
    """Something that happens every day from one weekday to another."""
    thing, who = rng.choice(THINGS), rng.choice(NAMES)
    start, rate = rng.randint(0, 30), rng.randint(2, 15)
    first = rng.randint(0, 3)
    last = rng.randint(first + 1, 6)
    days = last - first + 1
    question = (
        f"A shop kept {start} {thing} in stock. From {DAYS[first]} to {DAYS[last]}, {who} brought "
        f"{_written(rng, rate)} more every day. How many {thing} are in the shop now?"
    )
    added = days * rate
    return question, (
        f"From {DAYS[first]} to {DAYS[last]} there are {days} days. For each of {days} days, "
        f"{rate} more were brought, so {rate} * {days} = {added} were added. "
        f"{start} + {added} = {start + added}. The answer is {start + added}."
    )


def sharing(rng: Random) -> Problem:
    """A number shared out equally after some were kept back."""
    who, thing, friends = rng.choice(NAMES), rng.choice(THINGS), rng.choice(FRIENDS)
    people, each, kept = rng.randint(2, 12), rng.randint(2, 15), rng.randint(1, 20)
    shared = people * each
    question = (
        f"{who} has {shared + kept} {thing} and keeps {_written(rng, kept)} of them. The rest are "
        f"shared equally among {_written(rng, people)} {friends}. How many does each one get?"
    )
    return question, (
        f"After keeping {kept}, {who} has {shared + kept} - {kept} = {shared} {thing} to share. "
        f"Shared among {people} {friends}, each one gets {shared} / {people} = {each}. "
        f"The answer is {each}."
    )


def comparing(rng: Random) -> Problem:
    """Two people compared by a multiple or a difference, then added."""
    (one, two), thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    have, factor, more = rng.randint(3, 40), rng.randint(2, 6), rng.randint(2, 30)
    if rng.random() < 0.5:
        other = have * factor
        relation = f"{two} has {_written(rng, factor)} times as many {thing} as {one}"
        step = f"{two} has {factor} times as many, so {two} has {have} * {factor} = {other}."
    else:
        other = have + more
        relation = f"{two} has {_written(rng, more)} more {thing} than {one}"
        step = f"{two} has {more} more than {one}, so {two} has {have} + {more} = {other}."
    question = f"{one} has {have} {thing}. {relation}. How many {thing} do they have together?"
    return question, (
        f"{one} has {have} {thing}. {step} So in total they have {have} + {other} = "
        f"{have + other}. The answer is {have + other}."
    )


def backwards(rng: Random) -> Problem:
    """The size of a change, from before and after."""
    who, thing = rng.choice(NAMES), rng.choice(THINGS)
    before, change = rng.randint(20, 99), rng.randint(3, 18)
    if rng.random() < 0.5:
        after = before - change
        question = (
            f"There were {before} {thing} on the table. {who} took some of them away and "
            f"{after} were left. How many {thing} did {who} take?"
        )
        step = f"There were {before} {thing} at first. Then there were {after} after some were "
        return question, (
            f"{step}taken away. So {who} must have taken {before} - {after} = {change}. "
            f"The answer is {change}."
        )
    after = before + change
    question = (
        f"A box held {before} {thing}. {who} put more of them in until it held {after}. "
        f"How many {thing} did {who} put in?"
    )
    return question, (
        f"The box had {before} {thing} originally. After {who} put more in, it had {after}. "
        f"So {who} put in {after} - {before} = {change}. The answer is {change}."
    )


def percent(rng: Random) -> Problem:
    """A percentage of a group, and what remains."""
    thing, share = rng.choice(THINGS), rng.choice((10, 20, 25, 40, 50, 60, 75, 80))
    total = rng.randint(1, 20) * 20
    part = total * share // 100
    question = (
        f"A store received {total} {thing} and sold {share}% of them in the first week. "
        f"How many {thing} were not sold?"
    )
    return question, (
        f"The store sold {share}% of {total}, which is {total} * {share} / 100 = {part} {thing}. "
        f"That means {total} - {part} = {total - part} were not sold. The answer is {total - part}."
    )


def travel(rng: Random) -> Problem:
    """Distance from two stretches at constant speeds."""
    who, mode = rng.choice(NAMES), rng.choice(("cycles", "drives", "walks", "rides", "sails"))
    speed, hours, faster, later = (rng.randint(2, 9) for _ in range(4))
    one, two = speed * hours, (speed + faster) * later
    question = (
        f"{who} {mode} for {_written(rng, hours)} hours at {speed} miles an hour and then for "
        f"{_written(rng, later)} hours at {speed + faster} miles an hour. How far does {who} go?"
    )
    return question, (
        f"In the first {hours} hours {who} covers {hours} * {speed} = {one} miles. "
        f"In the next {later} hours {who} covers {later} * {speed + faster} = {two} miles. "
        f"So the distance is {one} + {two} = {one + two} miles. The answer is {one + two}."
    )


def saving(rng: Random) -> Problem:
    """Weeks of saving needed for a goal."""
    who, good = rng.choice(NAMES), rng.choice(("bicycle", "guitar", "camera", "telescope", "tent"))
    weekly, weeks, have = rng.randint(4, 25), rng.randint(3, 15), rng.randint(5, 60)
    missing = weekly * weeks
    question = (
        f"{who} wants to buy a {good} that costs ${have + missing}. {who} already has ${have} and "
        f"saves ${weekly} every week. After how many weeks can {who} buy the {good}?"
    )
    return question, (
        f"{who} still needs {have + missing} - {have} = {missing} dollars. Saving {weekly} dollars "
        f"a week, this takes {missing} / {weekly} = {weeks} weeks. The answer is {weeks}."
    )


def ages(rng: Random) -> Problem:
    """Ages now and in some years."""
    one, two = rng.sample(NAMES, 2)
    young, gap, years = rng.randint(3, 20), rng.randint(2, 15), rng.randint(2, 12)
    old = young + gap
    question = (
        f"{one} is {young} years old and {two} is {_written(rng, gap)} years older. How old will "
        f"{two} be in {_written(rng, years)} years?"
    )
    return question, (
        f"{two} is {young} + {gap} = {old} years old now. In {years} years {two} will be "
        f"{old} + {years} = {old + years}. The answer is {old + years}."
    )


def average(rng: Random) -> Problem:
    """The mean of a few counts."""
    who, thing = rng.choice(NAMES), rng.choice(THINGS)
    counts = [rng.randint(2, 30) for _ in range(rng.randint(2, 4))]
    counts.append(-sum(counts) % (len(counts) + 1) + (len(counts) + 1) * rng.randint(1, 5))
    total, size = sum(counts), len(counts)
    listed = ", ".join(map(str, counts[:-1])) + f" and {counts[-1]}"
    question = f"{who} counted {listed} {thing} on {size} days. What is the average for a day?"
    return question, (
        f"The total is {' + '.join(map(str, counts))} = {total}. There are {size} days, so the "
        f"average is {total} / {size} = {total // size}. The answer is {total // size}."
    )


FAMILIES: tuple[Callable[[Random], Problem], ...] = (
    changes,
    changes,  # twice: the family with the most shapes
    groups,
    shopping,
    daily,
    sharing,
    comparing,
    backwards,
    percent,
    travel,
    saving,
    ages,
    average,
)


def story(rng: Random) -> Iterator[Problem]:
    """An endless stream of (question, worked solution), families in random order."""
    while True:
        yield rng.choice(FAMILIES)(rng)
