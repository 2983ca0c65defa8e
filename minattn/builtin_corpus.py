"""A playwright in a page: a small grammar that writes endless plays, for machines without a network.

A template is a line of text with slots, such as "The {a2} {P2} {V} the {a2} {t1}."; every slot is filled with
a random word of its class. The digit counts syllables (1 = king, 2 = captain, stressed on the first), so the
verse falls into rough iambic pentameter. Slots in capitals agree in number with each other: the template
above stands for two, one with "captain keeps" and one with "captains keep". " / " breaks a verse line. Every
word and template was written for this file.

The text is the same on every platform and Python: the only source of chance is random.Random(seed).random(),
the one method whose sequence Python promises never to change, and what is done with it is plain IEEE
multiplication and comparison.
"""
import re
from random import Random

# ---------------------------------------------------------------- words

# Each scene has a theme, whose things are named more often: those of one syllable, those of two.
THEMES = {
    "war": ("sword shield drum spear bow helm pike camp wound scar flag horn spur",
            "banner trumpet dagger hammer arrow saddle rampart prison scabbard dungeon"),
    "sea": ("ship sail rope oar wave shore tide gull net mast cliff reef hull",
            "anchor harbour island tempest rudder galley barrel current seagull whirlpool"),
    "harvest": ("field plough barn seed root scythe crow well mill stone pear lamb hen",
                "orchard meadow wagon basket thistle apple pasture furrow hedgerow beehive turnip"),
    "court": ("crown throne robe ring seal gate key court hall coin cord stair",
              "castle tower sceptre jewel mirror ribbon chamber parlour kingdom carpet"),
    "law": ("law oath fault wrong scroll quill bond debt chain cell lock crime tongue",
            "letter question answer verdict ransom reason token charter prison lawbook"),
    "love": ("heart glove song lute sigh tear name veil dream vow eye pearl",
             "sonnet garden window whisper secret pillow locket fountain cradle sorrow"),
    "night": ("star moon ghost owl bat grave tomb bell lamp shroud shade flame",
              "candle shadow lantern churchyard raven steeple ember nightmare cellar spider"),
    "feast": ("cup plate spoon pie bowl roast flute jest feast broth ham jug",
              "table kettle goblet fiddle oven platter dumpling pudding bottle napkin"),
    "winter": ("cloud storm frost coat cloak boot hearth log wind roof drift lake",
               "blanket winter river snowflake shutter chimney puddle bonfire mitten window"),
    "road": ("road hill inn cart wheel stile path ford staff map sign mule",
             "valley mountain tavern milestone journey forest bundle signpost chapel lantern"),
}
PLACES = """
a castle gate|the queen's garden|a harbour, before dawn|a field near the river|the hall of justice
a tavern|a churchyard|the top of a tower|a kitchen|a road through the forest|the deck of a ship|a prison
a mill|the market square|a bedchamber|before the walls|a chapel|a frozen lake|the captain's tent
an orchard|a narrow street|the quay, at dusk|a shepherd's hut
""".strip().replace("\n", "|").split("|")

WORDS = {name: words.split() for name, words in {
    "p1": "king queen lord knight knave guard clerk priest maid lad friend son squire duke smith monk "
          "groom bride guest fool earl cook scribe boy girl bard rogue lout twin nun dame guide",
    "p2": "captain soldier widow father mother brother sister daughter neighbour beggar sailor tailor "
          "miller baker shepherd stranger master rider hunter doctor porter tinker merchant servant "
          "cousin traitor minstrel pilgrim orphan warden steward fiddler weaver potter lawyer uncle "
          "barber sexton jester bishop tyrant hermit",
    "a1": "cold old young proud poor sweet grey black white green dark bright false true wild tame blind "
          "deaf sharp dull brave meek thin fat strange plain rough soft warm wet dry red blue small tall "
          "kind mad sad glad rich bare lame swift slow late quick calm pale stern vain wise lost",
    "a2": "silver golden bitter broken hollow gentle weary hungry silent crooked noble simple wicked "
          "patient stubborn careful naked frozen burning faithful restless secret humble idle eager empty "
          "ancient open ugly lonely merry jealous lazy dusty rusty quiet narrow nameless sleepless "
          "wretched painted hidden borrowed stolen wooden cunning drunken royal loyal foolish yellow "
          "scarlet crimson moon-lit wind-blown half-dead well-worn worthless tender solemn modest sullen "
          "ragged thirsty zealous vexing",
    "adv": "softly gladly slowly sweetly sadly boldly strangely truly quickly rudely kindly gravely "
           "wildly blindly",
    "prep": "beneath beside within before behind upon above beyond across around below against",
    "b1": "heart hand eye tongue head ear knee nose mouth thumb beard",
    "plant": "nettle onion willow thistle bramble acorn turnip clover lily radish cabbage hazel",
    "num": "two three four five six seven eight nine ten twelve twenty forty",
}.items()}

# base, past, participle; the third person adds an s
TRANSITIVE = """
keep kept kept|hold held held|find found found|lose lost lost|seek sought sought|burn burned burned
bring brought brought|love loved loved|serve served served|sell sold sold|leave left left
mark marked marked|scorn scorned scorned|name named named|fear feared feared|call called called
know knew known|see saw seen|hear heard heard|bear bore borne|draw drew drawn|mourn mourned mourned
spurn spurned spurned|claim claimed claimed|buy bought bought|bind bound bound|fight fought fought
feed fed fed|shun shunned shunned|blame blamed blamed|warn warned warned|save saved saved
drown drowned drowned|hang hung hung|kill killed killed|crown crowned crowned|meet met met
mock mocked mocked|trick tricked tricked|free freed freed|pay paid paid|rob robbed robbed
rule ruled ruled|stain stained stained|tame tamed tamed|weigh weighed weighed|move moved moved
strike struck struck
"""
INTRANSITIVE = """
sleep slept|weep wept|wake woke|fall fell|come came|ride rode|stand stood|sing sang|burn burned|sink sank
speak spoke|kneel knelt|bleed bled|laugh laughed|dream dreamed|sail sailed|turn turned|run ran
crawl crawled|shine shone|grow grew|sit sat|live lived|die died|sigh sighed|wail wailed|shake shook
swim swam|stray strayed|creep crept|roar roared|smile smiled|pray prayed|starve starved|yawn yawned
knock knocked|drown drowned|spin spun|ring rang|climb climbed
"""
IAMBIC = """
forget forgot|betray betrayed|forgive forgave|believe believed|obey obeyed|adore adored|reveal revealed
destroy destroyed|endure endured|conceal concealed|bemoan bemoaned|behold beheld|pursue pursued
repay repaid|forsake forsook|receive received|deserve deserved|mislead misled|enjoy enjoyed
avenge avenged|besiege besieged|disown disowned|surprise surprised|ignore ignored
"""


def _forms(table):
    return zip(*(entry.split() for entry in table.strip().replace("\n", "|").split("|")))


WORDS["v"], WORDS["vd"], WORDS["vn"] = _forms(TRANSITIVE)
WORDS["i"], WORDS["id"] = _forms(INTRANSITIVE)
WORDS["w"], WORDS["wd"] = _forms(IAMBIC)
WORDS["vz"] = [verb + "s" for verb in WORDS["v"]]
WORDS["iz"] = [verb + "s" for verb in WORDS["i"]]
WORDS["t1"] = sorted({word for ones, _ in THEMES.values() for word in ones.split()})
WORDS["t2"] = sorted({word for _, twos in THEMES.values() for word in twos.split()})
for _noun in ("p1", "p2", "t1", "t2"):
    WORDS[_noun + "s"] = [word + "s" for word in WORDS[_noun]]

# A scene may end on a couplet; both lines take their last word from one family.
RHYMES = [family.split() for family in """
day way clay bay ray|night light sight knight fight|hand land sand band strand|fold gold hold cold
sea tree key bee plea|stone bone throne moan|year tear fear spear ear|door floor shore oar war
grave wave cave knave|bell well spell dell|ring king spring wing string|crown town gown frown
rain chain plain brain grain pain|stair hair chair air|bed head bread thread|flame name shame game
mill hill will sill|breath death|tale sail gale nail
""".strip().replace("\n", "|").split("|")]

# ---------------------------------------------------------------- templates

# singular, plural; in braces: the word class, else the word itself
AGREE = {"P1": ("{p1}", "{p1s}"), "P2": ("{p2}", "{p2s}"), "T1": ("{t1}", "{t1s}"), "T2": ("{t2}", "{t2s}"),
         "V": ("{vz}", "{v}"), "I": ("{iz}", "{i}"), "IS": ("is", "are"), "WAS": ("was", "were"),
         "HAS": ("has", "have"), "DOES": ("does", "do"), "THIS": ("this", "these"), "IT": ("it", "they"),
         "ITS": ("its", "their")}


def _templates(table):
    """One template per line -> [(format string, names of its slots)], both numbers of those that have two."""
    compiled = []
    for line in table.strip().split("\n"):
        singular = plural = line.replace(" / ", "\n")
        for slot, (one, many) in AGREE.items():
            singular = singular.replace(f"{{{slot}}}", one)
            plural = plural.replace(f"{{{slot}}}", many)
        for template in dict.fromkeys([singular, plural]):         # once if the two are the same
            compiled.append((re.sub(r"\{\w+\}", "%s", template), re.findall(r"\{(\w+)\}", template)))
    return compiled


VERSE = _templates("""
The {a2} {P2} {V} the {a2} {t1}.
The {a2} {T2} {I} {prep} the {t1}.
The {P1} who {V} the {t1} shall {i} at last.
I {vd} the {a2} {t2} by the {t1}.
My {p1} has {vn} the {a2} {p2}'s {t1}.
No {p1} can {v} a {t1} without a {t1}.
When {a2} {t2s} {i}, the {p2s} {i}.
There is no {t1} so {a1} as {a2} {t1s}.
Between the {t2} and the {a2} {t1} / I {vd} my {p2}'s {t2} and my {t1}.
How {a1} the {T2} {IS}, how {a1} the {t1}!
I have not {vn} a {t1} this {a2} year.
And we {wd} the {a2} {p1} at last.
I will {w} the {p2} and the {t1}.
You must {w} the {a2} {p1}, good {N}.
O {N}, where is now the {a2} {t1}?
What {p2} {vz} the {t1} and will not {i}?
Have you not {vn} the {t1} {prep} the {t1}?
Why {DOES} the {P2} {v} the {a2} {t1}?
Speak, {N}, speak: who {vd} the {a2} {t1}?
How {a2} {IS} the {P1} who {V} the {t1}!
O {a2} {t1}, O {a1} and {a2} {t1}!
Away, away, you {a2} {p2}'s {t1}!
Come, let us {v} the {t1} and {v} the {p2}.
If I must {i}, then let the {p2s} {i}.
If {t1s} were {t1s} and {a2} {p1s} were {a1}, / Then I would {v} the {t2} and be {a1}.
{prep} the {t2}, where the {p2s} {i}, / I {vd} a {a1} and {a2} {t1}, and {id}.
{THIS} {T1} {WAS} once a {p2}'s: now {IT} {I}.
I hear that {M} {vd} the {a2} {t1}.
They say that {M} {iz} {prep} the {t1}.
My {b1} is {a1}, my {b1} is {a1}, my {b1} / Is {a2} as the {t1} {prep} the {t1}.
Not all the {a2} {t2s} of the {t1} / Can {v} the {p1} whom {a2} {p1s} have {vn}.
Give me the {t1}, and you may {v} the {t1}.
The {P1} that {I} {IS} not the {P1} that {I}.
I was a {p2} once, and {vd} the {t1}, / But now I {v} the {a2} {t1}, and {i}.
Let every {p2} {v} the {a2} {t1}.
Tomorrow we shall {v} the {a2} {t1}.
Last night I {vd} a {t2} in my dream; / It had a {p2}'s {b1}, a {p2}'s {b1}.
The {T1} {IS} {a1}; the {a2} {P2} {I}.
What is a {t1}? A {a2} {p2}'s {t1}.
And what are {t1s} to {p1s}, or {p1s} to {t1s}?
I'll not be {vn}, nor will I {v} the {t1}.
You speak of {t1s}; I'd rather speak of {t1s}.
'Tis not the {t1} I {v}, it is the {t1}.
I {vd} but {num} of all the {a2} {t1s}.
He {iz}, she {iz}, and neither {vz} the {t1}.
She {vd} the {a2} {p1} and {vd} his {t1}.
He {vd} the {a2} {p1} and {vd} her {t1}, / And {adv} {id}, and would not {v} the {t2}.
With {a1} and {a2} {t1s} they {vd} the {p2}.
So {adv} did the {p2s} {i}, my {p1}.
Be {a1}, be {a2}, be the {p2}'s {t1}.
And so the {T2} {I}, and so do I.
The {T2} {HAS} no {t1} and {HAS} no {t1}, / And yet {IT} {I} as {adv} as the {p1}.
Who {vz} the {t1}, and who shall {v} the {t1}?
Where {IS} the {a2} {P1} that {vd} my {p2}?
""")

PROSE = _templates("""
I knew a {p2} once who {vd} a {t2} and took it for a {t1}; nobody called him {a2} after that.
Give a {p1} a {t1} and he will ask for a {t2}; give him a {t2} and he will ask for your {b1}.
There is more sense in one {a2} {t2} than in {num} {p2s} and a {p1}.
If you would {v} a {p2}, first {v} his {t2}.
By my {b1}, I had rather {v} a {a2} {t1} than be a {p1}'s {p2}.
The {T2} {IS} {a1} and the {T1} {IS} {a1}, and for all that nobody {vz} the {p2}.
What, {N}, do you {v} {t1s} by day and {v} {t2s} by night?
They told me to {v} the {t2}; nobody told me that the {t2} was full of {a2} {p2s}.
I am a {a1} {p2}, {title}, and I {v} what I am told to {v}.
Either the {p1} is {a2} or the {t1} is {a1}, and I never yet saw a {a1} {t1}.
Has any of you {vn} a {a2} {t1} with a {t1} on it?
The {P2} who {V} the {t1} {prep} the {t2} {HAS} not slept since Sunday.
I would not {v} that {t2} for {num} {t1s}, no, nor for {num} more.
{THIS} {T1} {IS} {a2}, and {ITS} {b1} is {a1}.
When the {p1s} {i}, the {p2s} {i}; and when the {p2s} {i}, who {vz} the {t1s}?
My {p2} was a {p2}, and his {p2} was a {p2}, and here I stand with a {t1} in my {b1}!
Do not {v} me, {N}; I only {vd} it because it was {a2}.
It is a {a1} thing to {i} {adv}, and a {a2} thing to {i} alone.
Where there are {a1} {t1s}, there are {a2} {p2s}.
Somebody has {vn} my {t2}, and if it was you, {N}, I will {v} your {t1}.
Why should I {v} a {p2}? No {p2} ever {vd} me.
On Monday they {vd} the {p1}; on Tuesday they {id}; on Wednesday there was no {t2} left to {v}.
You may {v} a {t1} with {a2} {t1s}, but you will not {v} a {p2} with them.
If {t2s} were {t1s}, every {p2} in this town would be {a1}.
Mark me, {title}: the {p1} {iz}, the {p2} {iz}, and {t1s} are dear.
Was there ever such a {a2} {p2}? Was there ever such a {t1}?
I asked the {p2} for a {t2}, and the {p2} gave me a {t1}; I asked for a {t1}, and the door was shut.
Nobody {vz} a {a2} {p2}, {N}, but everybody {vz} his {t2}.
""")

ANSWERS = _templates("""
Aye, {title}.
No, {N}, no.
I cannot tell you, {title}.
Ask {M}.
Not I, {title}.
Who asks it?
It was {M}, {title}.
Because the {T1} {IS} {a1}.
I {vd} no {t1}, {title}.
The {P2} {HAS} {vn} it, {N}.
Why, {prep} the {t2}.
Nobody, {title}, but a {a2} {p2}.
""")
REACTIONS = _templates("""
Peace, {N}, peace!
Be patient, {N}.
O {a2} {t1}!
Not so loud, {title}.
Is {N} mad?
Well cried, {title}.
Quiet! The {P2} {I}.
""")
OPENERS = _templates("""
So be it.
And yet, good {N}, hear me.
Well, {title}.
I have heard you, {N}.
Enough of {t1s}.
You say well, {title}.
Listen, {N}.
""")
COUPLETS = _templates("""
So let the {a2} {p2} keep the {r}, / And I will {v} the {t2} and the {s}.
Farewell, {a1} {t1}; farewell, {a2} {r}: / Who {vz} the {t1} must {v} the {a2} {s}.
The {P2} {I}, and {a1} is the {r}; / Tomorrow we shall {v} the {a2} {s}.
We go by {a2} {t1s} to {v} the {r}, / And none shall {v} the {p2} or the {s}.
""")
DIRECTIONS = _templates("""
A bell rings within.
Thunder.
Trumpets sound.
A drum, far off.
{NAME} kneels.
{NAME} reads a letter.
{NAME} draws a dagger.
{NAME} gives {OTHER} a {t2}.
{NAME} walks apart.
They drink.
Music within.
A {p2} crosses the stage with a {t2}.
The {T2} {I}.
""")

# The cast: what others call them, how others address them, whether they speak prose, their habits of speech.
CAST = {name: (called, titles.split("|"), prose, _templates(own)) for name, called, titles, prose, own in [
    ("MARGET", "Marget", "my queen|madam|your grace", False, """
We are the {t1}, we are the {a2} {t1}.
We will not {v} the {t1}, nor {v} the {p1}.
It is our will that {a2} {p2s} {i}.
Our {t1} is not for {a2} {p1s} to {v}.
"""),
    ("OSWIN", "Oswin", "my prince|my lord", False, """
Am I the {t1}, or am I but the {p1}?
I know not, {N}; no, I know not, {N}.
Perhaps I {vd} the {t1}; perhaps I did not.
Which is the {a2} {t1}, and which the {t1}?
"""),
    ("HALDER", "Halder", "captain|good captain", False, """
Two at the {t2}, {num} beside the {t1}!
Stand to the {t1}, and let the {t2} {i}!
No talk of {t1s}. The {p2s} wait. March on.
Close up the {t2}! Bring the {a2} {t1}!
"""),
    ("LINNET", "Linnet", "sweet girl|child", False, """
Hey the {t1} and ho the {t1}, / The {t2} and the {a2} {t1}, / And a {t1} for the morning.
My love {vd} a {t1}, my love {vd} a {t1}, / And a {t1} for the morning.
Sing {a1}, sing {a1}, sing {a2} {t1}, / And a {t1} for the morning.
"""),
    ("BRANNOC", "Brannoc", "old man|gardener", True, """
Every {p1} is a {plant} in the end: {a1} in spring, {a2} in winter.
Water a {plant} with {t1s} and it will grow you a {p2}.
I have buried {num} {p2s} and one {plant}, and I miss the {plant}.
You cannot hurry a {plant}, {title}, and you cannot hurry a {p1}.
"""),
    ("TAMSIN", "Tamsin", "mistress|good lady", False, """
So said the {p2} when she {vd} the {t1}.
You call it {t1}, good {N}; I call it {t1}.
O, very {a2}! Next you'll {v} the {t1}.
If you are {a1}, then I'm a {a2} {t1}.
"""),
    ("CORWEN", "Corwen", "my lord|sir", False, """
They think me {a1}; then let them think me {a1}. / Before the {t1} I shall {w} the {p1}.
The {p1} believes me. O the {a2} {p1}!
Trust me, good {N}: I would never {v} you.
I {v} them all, and all of them are {a1}.
"""),
    ("EDRIC", "Edric", "good clerk|sir", True, """
Item, {num} {t2s}. Item, {num} {a2} {t1s}. Item, one {p2}, {a2}.
I have it written here: {num} {t1s}, {num} {t2s}, and not one {a2} {p1} to sign for them.
First, the {t1} is {a1}; second, the {t2} is {a1}; third, it is past {num} o'clock.
That makes {num} {t1s}, {title}, unless the {p2} {vd} one.
"""),
    ("WENNA", "Wenna", "poor widow|mother", False, """
Gone, {N}, gone, and all the {t1s} are gone.
My {p1} is dead, and still the {t2s} {i}.
I had a {p1}; I had a {t1}; I had / A {a2} {t1}, and now I have a {t1}.
Who will remember him? The {t2}? The {t1}?
"""),
    ("FABLE", "Fable", "fool|good fool", True, """
Riddle me this, {title}: what has a {b1} and no {b1}, and {vz} {t1s}? A {t2}!
A {p1} without a {t1} is a {p2}; and I am no {p2}, for I have a {t1} and a {t2}.
Ha! I'd laugh, {title}, but my {b1} is {a1}.
They pay me in {t1s}, {title}, and I spend them on {t2s}.
"""),
    ("JORY", "Jory", "sailor|good Jory", False, """
The sea, the sea! I {vd} it like a {p2}.
Haul on the {t1}, you {a2} {p2s}, haul!
North by the {t2}, {N}, and the wind is {a1}.
I sailed for {num} years with a {a2} {p2}, / And every night he {vd} a {t1}, and {id}.
"""),
    ("AGNES", "Agnes", "good nurse|Agnes", True, """
Hush, {N}, hush; you were a {a2} babe, and you {id} like a {t2}.
Take {plant} and {plant} and a little milk, and lay it on the {b1}.
I nursed {num} {p2s}, and every one of them {vd} a {t2}.
Lord, how the {t1s} {i}! Come to bed, {title}.
"""),
    ("FIRST SOLDIER", "soldier", "soldier|comrade", True, """
Who goes there? Stand, and name your {t1}!
Cold watch, {title}. I heard a {t2}, and then I heard nothing.
The captain says {num} more hours. The captain is in bed.
"""),
    ("SECOND SOLDIER", "soldier", "soldier|comrade", True, """
I saw it too, {title}: a {a2} {p2} with a {t1} for a {b1}.
That was the {t2}. It {iz} when the wind is {a1}.
I'd give my {t1} for a {a1} bed.
"""),
    ("NEIGHBOUR", "neighbour", "neighbour|good neighbour", True, """
Have you heard, {title}? {M} {vd} the {t2} with a {t1}!
It was not so in my {p2}'s day; then the {t1s} were {a1} and the {p1s} were {a2}.
I say nothing, {title}; but the {p2} next door {vz} {t2s}.
"""),
    ("MESSENGER", "fellow", "fellow|good fellow", False, """
The {p2s} have {vn} the {t2} {prep} the {t1}!
I come from {M}, and I come with {t1s}.
{num} {a2} {p2s} {i} {prep} the {t1}!
"""),
]}
NUMBERS = ["ONE", "TWO", "THREE", "FOUR", "FIVE"]

# ---------------------------------------------------------------- the playwright


def _pick(random, pool):
    return pool[int(random() * len(pool))]


def _sample(random, pool, count):
    pool = list(pool)
    return [pool.pop(int(random() * len(pool))) for _ in range(count)]


def _fill(random, templates, words):
    line, slots = _pick(random, templates)
    line = line % tuple([_pick(random, words[slot]) for slot in slots])
    return line[0].upper() + line[1:]


def _wrap(prose, width=66):
    lines, line = [], ""
    for word in prose.split():
        if len(line) + len(word) >= width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return "\n".join(lines + [line])


def _speech(random, name, words, cue):
    """What `name` says to a speech that ended in `cue`: first a reply, then lines of their own."""
    _, _, prose, habits = CAST[name]
    lines = []
    if random() < (0.8 if cue in "?!" else 0.15):
        lines.append(_fill(random, {"?": ANSWERS, "!": REACTIONS}.get(cue, OPENERS), words))
    if not lines or random() < 0.7:
        habit = int(random() * 3)                                  # at most one line of a speech is a habit
        for i in range(1 + int(random() * random() * 6)):
            lines.append(_fill(random, habits if i == habit else PROSE if prose else VERSE, words))
    return _wrap(" ".join(lines)) if prose else "\n".join(lines)


def _scene(random, cast):
    """One scene, from "Enter" to "Exeunt", for some of the `cast`: a list of paragraphs."""
    here = _sample(random, cast, 2 + int(random() * 3))
    ones, twos = (things.split() for things in _pick(random, sorted(THEMES.values())))
    words = dict(WORDS)
    for noun, theme in (("t1", ones), ("t2", twos)):
        words[noun] = WORDS[noun] + 8 * theme
        words[noun + "s"] = WORDS[noun + "s"] + 8 * [word + "s" for word in theme]

    paragraphs = ["Enter " + ", ".join(here[:-1]) + " and " + here[-1] + "."]
    speaker, other, cue = here[0], here[1], "."
    for _ in range(10 + int(random() * 25)):
        absent = _pick(random, [name for name in cast[:6] if name not in here])
        words.update(N=[CAST[other][0]], title=CAST[other][1], M=[CAST[absent][0]])
        words.update(NAME=[speaker], OTHER=[other])
        speech = _speech(random, speaker, words, cue)
        paragraphs.append(f"{speaker}:\n{speech}")
        cue = speech[-1]
        if random() < 0.06:
            paragraphs.append(_fill(random, DIRECTIONS, words))
        if len(here) > 2 and random() < 0.05:
            paragraphs.append(f"Exit {speaker}.")
            here.remove(speaker)
        elif len(here) < 5 and random() < 0.04:
            newcomer = _pick(random, [name for name in cast if name not in here])
            paragraphs.append(f"Enter {newcomer}.")
            here.append(newcomer)
            speaker, other, cue = newcomer, speaker, "."
            continue
        # Mostly the one spoken to answers, as long as they are still here.
        before = speaker
        if other not in here or random() < 0.3:
            speaker = _pick(random, [name for name in here if name != before])
        else:
            speaker = other
        other = before if before in here else _pick(random, [name for name in here if name != speaker])
    if random() < 0.6:
        words["r"], words["s"] = ([word] for word in _sample(random, _pick(random, RHYMES), 2))
        paragraphs.append(f"{speaker}:\n{_fill(random, COUPLETS, words)}")
    return paragraphs + ["Exeunt."]


def text(n_chars=1_000_000, seed=1):
    """Write plays, act after act, and return their first n_chars characters (str).

    The same for every platform and Python; a shorter text of the same seed is the beginning of a longer one.
    Raises ValueError if n_chars is below 1.
    """
    if n_chars < 1:
        raise ValueError(f"n_chars must be at least 1, got {n_chars}")
    random = Random(seed).random
    names, minor = list(CAST)[:12], list(CAST)[12:]
    parts, written = [], 0
    while True:
        cast = _sample(random, names, 6) + _sample(random, minor, 2)
        kind = _pick(random, ["TRAGEDY", "COMEDY", "HISTORY", "DREAM"])
        heading = f"THE {kind} OF THE {_pick(random, WORDS['a2'])} {_pick(random, WORDS['t2'])}\n\n".upper()
        for act in NUMBERS:
            heading += f"ACT {act}\n\n"
            for scene in NUMBERS[:2 + int(random() * 3)]:
                heading += f"SCENE {scene}. {_pick(random, PLACES).capitalize()}.\n\n"
                part = heading + "\n\n".join(_scene(random, cast)) + "\n\n"
                part = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", part)
                parts.append(part)
                written += len(part)
                heading = ""
                if written >= n_chars:
                    return "".join(parts)[:n_chars]
