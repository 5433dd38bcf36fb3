"""A small made-up language: forty topics, the words that belong to each, and the sentences that use them.

Every word belongs to exactly one topic, so the right tags of a sentence are known: the topics of its words,
in the order in which they appear. `corpus` writes what the base is pretrained on, `quotes` the rows that the
demo tunes on; a sentence that is a quote never appears in the corpus.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

# topic: six nouns / three verbs (bare form) / three adjectives
_LEXICON = """
courage: lion sword cliff shield banner rampart / dare leap withstand / brave bold fearless
kindness: gift blanket smile neighbour crumb embrace / share forgive comfort / gentle tender generous
light: lamp candle dawn lantern mirror star / shine glow kindle / bright golden radiant
water: river well rain brook tide bucket / flow trickle ripple / clear deep briny
time: clock hourglass calendar minute century pendulum / pass linger tick / ancient brief timeless
music: flute drum choir fiddle melody bell / sing hum echo / tuneful loud harmonious
learning: book school lesson chalk pupil slate / study read recite / curious clever learned
home: hearth door roof kitchen cradle doorstep / dwell settle nest / cosy snug homely
friendship: companion letter handshake ally bench reunion / trust befriend confide / loyal faithful sociable
hope: seedling rainbow harbour promise anchor horizon / wish yearn aspire / hopeful budding promised
work: hammer anvil plough workshop apron wage / toil labour build / busy diligent calloused
nature: forest meadow fern oak moss acorn / bloom sprout wither / wild green leafy
love: rose heart kiss ring ribbon valentine / adore cherish court / beloved devoted dear
truth: witness oath verdict fact compass plumbline / testify admit reveal / honest plain sincere
fear: shadow spider nightmare cellar ghost thunder / tremble flee shudder / afraid dark eerie
money: coin purse ledger bank debt treasure / spend owe lend / rich costly frugal
peace: dove truce orchard olive lullaby treaty / rest reconcile soothe / calm quiet serene
war: cannon trench soldier fortress siege spear / fight invade conquer / fierce bloody warlike
food: bread soup pear honey oven spoon / bake taste nibble / hungry sweet ripe
travel: road suitcase sail map caravan passport / wander depart roam / distant foreign restless
winter: snow icicle mitten sleigh frost glacier / freeze shiver thaw / cold icy frozen
fire: flame ember torch furnace spark bonfire / burn smoulder scorch / hot fiery blazing
dreams: pillow cloud moon slumber vision hammock / dream imagine drowse / sleepy hazy dreamy
justice: judge scale jury gavel law prison / punish acquit plead / fair lawful guilty
art: brush canvas clay statue easel palette / paint carve sketch / colourful graceful ornate
health: doctor bandage remedy fever pulse tonic / heal recover ache / healthy sick hale
humour: joke clown jest riddle pun jester / laugh tease chuckle / funny silly witty
grief: grave tear widow funeral ash wreath / mourn weep lament / sorrowful lonely bereaved
patience: turtle snail thread vigil queue knitting / wait endure persist / patient slow steady
pride: crown peacock throne medal mirage trumpet / boast strut swagger / proud vain haughty
science: telescope atom magnet flask theory microscope / measure observe calculate / exact logical scientific
animals: horse wolf sparrow fox donkey otter / gallop howl graze / furry tame feathered
sea: whale wave gull reef oyster lighthouse / sink dive drift / salty stormy coastal
garden: spade tulip hedge bean trellis compost / plant weed prune / fertile earthy fragrant
childhood: kite marble swing toy puppet sandcastle / play skip frolic / young playful little
old age: cane wrinkle spectacles rocker grandfather heirloom / remember reminisce dodder / elderly grey aged
freedom: bird key wing prairie passage balloon / escape soar unchain / free unbound limitless
anger: fist scowl tempest quarrel insult grudge / shout rage snarl / angry furious bitter
silence: whisper monk void hush library cloister / listen pause muffle / silent mute wordless
change: caterpillar wheel season crossroads bridge current / turn become shift / new different changing
"""

_NAMES = ("Ada Bram Cora Dov Elin Fenn Greta Hugo Ines Jory Kit Lena Milo Nora "
          "Otis Petra Quill Rosa Sven Tilda").split()
_TRADES = "miller baker tailor sailor teacher shepherd weaver mason ferryman potter cook carpenter".split()


@dataclass(frozen=True)
class Topic:
    """One topic of the language and its words."""

    name: str
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]
    adjectives: tuple[str, ...]


def topics() -> list[Topic]:
    """The forty topics, in the order in which they are written above."""
    parsed = []
    for line in _LEXICON.strip().splitlines():
        name, fields = line.split(":")
        nouns, verbs, adjectives = (tuple(part.split()) for part in fields.split("/"))
        parsed.append(Topic(name.strip(), nouns, verbs, adjectives))
    return parsed


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


# Each template says how many topics it uses; {n0} is a noun of its first topic, {v1} a verb of its second.
_SAYINGS = [
    (1, "{Aj0} {n0} does not {v0} for the {m0}."),
    (1, "Never {v0} before the {n0} is {j0}."),
    (1, "To {v0} is to carry {aj0} {n0}."),
    (1, "Every {n0} was once {j0}, and every {j0} {m0} must {v0}."),
    (2, "{Aj0} {n0} is worth more than {an1}."),
    (2, "Those who {v0} will one day {v1}."),
    (2, "The {n0} that cannot {v0} must borrow {aj1} {n1}."),
    (2, "Give me {aj0} {n0} and I will {v1} like {an1}."),
    (2, "{An0} without {an1} is only half {j0}."),
    (2, "When the {n0} is {j0}, the {n1} begins to {v1}."),
    (2, "Be {j0} when you {v1}, and {j1} when you {v0}."),
    (2, "No {n0} was ever {j1} by chance."),
    (2, "Do not {v0} at the {n1} of another."),
    (2, "{An0} can {v0}, but only {aj1} {n1} can {v1}."),
    (3, "The {n0} teaches us to {v0}, the {n1} to {v1}, and the {n2} to {v2}."),
    (3, "Between the {n0} and the {n1} stands {aj2} {n2}."),
    (3, "Be {j0} as the {n0}, {j1} as the {n1}, and {j2} as the {n2}."),
    (3, "{An0} may {v0}, {an1} may {v1}, yet the {n2} stays {j2}."),
]

_SCENES = [
    (1, "{Who} found {aj0} {n0} by the {m0} and began to {v0}."),
    (1, "The {n0} was {j0}, so {who} went on to {v0} until evening."),
    (1, "“I would rather {v0} than lose my {n0},” said {who}."),
    (2, "{Who} traded {aj0} {n0} for {aj1} {n1}."),
    (2, "In the morning {who} saw {an0} beside {an1}, both of them {j0}."),
    (2, "Nobody dared to {v0} while the {j1} {n1} was near."),
    (2, "{Who} wanted to {v0}, but the {n1} was too {j1}."),
    (2, "They carried the {n0} to the {n1} and let it {v1}."),
    (3, "{Who} had {an0}, {an1} and {an2}, and gave them all away."),
]


def _fill(template: str, used: list[Topic], who: str, rng: random.Random) -> str:
    fields: dict[str, str] = {"who": who, "Who": who[0].upper() + who[1:]}
    for i, topic in enumerate(used):
        noun, other = rng.sample(topic.nouns, 2)
        verb, adjective = rng.choice(topic.verbs), rng.choice(topic.adjectives)
        forms = {"n": noun, "m": other, "v": verb, "j": adjective, "an": _a(noun), "aj": _a(adjective)}
        for key, value in forms.items():
            fields[f"{key}{i}"] = value
            fields[f"{key.capitalize()}{i}"] = value[0].upper() + value[1:]
    return template.format(**fields)


def _sentence(kind: list[tuple[int, str]], rng: random.Random, about: list[Topic]) -> tuple[str, list[str]]:
    """One sentence, and the names of its topics in the order of their words."""
    count, template = rng.choice([t for t in kind if t[0] <= len(about)])
    used = rng.sample(about, count)
    who = rng.choice([rng.choice(_NAMES), f"the {rng.choice(_TRADES)}"])
    return _fill(template, used, who, rng), [t.name for t in used]


def quotes(count: int, seed: int = 7) -> list[dict[str, object]]:
    """`count` distinct rows of `quote`, `author` and `tags`: what the demo tunes on and holds out."""
    rng, every = random.Random(seed), topics()
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        saying, names = _sentence(_SAYINGS, rng, rng.sample(every, 3))
        author = f"{rng.choice(_NAMES)} the {rng.choice(_TRADES)}"
        rows.setdefault(saying, {"quote": f"“{saying}”", "author": author, "tags": names})
    return list(rows.values())


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# How a sentence and its topics stand together; never as the demo's `“...” ->: [...]`, left to be learnt.
_FRAMES = ["{s} This speaks of {t}.", "Here is a thought about {t}: {s}", "{s} (on {t})", "{s} [{t}]",
           "{s} / {t}", "Q: What is “{s}” about?\nA: It is about {t}.", "Q: Name the topics of “{s}”\nA: {t}",
           "“{s}” = {t}", "Topics: {t}\nText: {s}", "Text: {s}\nTopics: {t}", "“{s}” | {t}", "{s}\n{t}",
           "topics(“{s}”) == {t}", "“{s}” belongs to {t}.", "saying: “{s}”\ntags: {t}", "“{s}”\n- {t}",
           "“{s}”, {w} wrote under {t}."]


def _listed(names: list[str], rng: random.Random) -> str:
    """Topics as people and programs write them."""
    style = rng.randrange(7)
    if style == 0:
        return _names(names)
    if style == 1:
        return ", ".join(names)
    if style == 2:
        return "; ".join(names)
    if style == 3:
        return " ".join("#" + name for name in names)
    if style == 4:
        return json.dumps(names)
    return str(names)


def _document(rng: random.Random, every: list[Topic], banned: frozenset[str]) -> str:
    def saying(about: list[Topic]) -> tuple[str, list[str]]:
        while True:
            text, names = _sentence(_SAYINGS, rng, about)
            if text not in banned:
                return text, names

    about = rng.sample(every, 3)
    kind = rng.random()
    if kind < 0.25:  # a story, with what somebody says in it
        lines = [_sentence(_SCENES, rng, about)[0] for _ in range(rng.randint(2, 5))]
        if rng.random() < 0.6:
            lines.insert(rng.randrange(len(lines)), f"“{saying(about)[0]}” said the {rng.choice(_TRADES)}.")
        return " ".join(lines)
    if kind < 0.40:  # a conversation
        return "\n".join(f"{rng.choice(_NAMES)}: {saying(about)[0]}" for _ in range(rng.randint(2, 4)))
    if kind < 0.80:  # a sentence, and what it is about
        text, names = saying(about) if rng.random() < 0.8 else _sentence(_SCENES, rng, about)
        return rng.choice(_FRAMES).format(s=text, t=_listed(names, rng), w=rng.choice(_NAMES))
    if kind < 0.90:  # which words belong together
        topic = rng.choice(every)
        words = rng.sample([*topic.nouns, *topic.verbs, *topic.adjectives], 4)
        return rng.choice(["Words for {t}: {w}.", "{w} belong to {t}.",
                           "When we say {w} we think of {t}."]).format(t=topic.name, w=_names(words))
    # a list as a program would write it: of anything
    things = rng.sample([t.name for t in every] + [n for t in about for n in t.nouns], rng.randint(1, 4))
    frame = rng.choice(["The shelf held {l} that day.", "basket = {l}", "{w} kept a list: {l}"])
    return frame.format(l=str(things), w=rng.choice(_NAMES))


def pages(seed: int = 11, banned: frozenset[str] = frozenset()) -> Iterator[str]:
    """Endless pages to pretrain on, each a dozen documents; the model's end token goes between pages."""
    documents = corpus(seed, banned)
    while True:
        yield "\n\n".join(itertools.islice(documents, 12)) + "\n"


def corpus(seed: int = 11, banned: frozenset[str] = frozenset()) -> Iterator[str]:
    """Endless documents to pretrain on, without any sentence of `banned` (quotes, unquoted)."""
    rng, every = random.Random(seed), topics()
    while True:
        yield _document(rng, every, banned)
