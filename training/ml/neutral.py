"""Texts and prompts that have nothing to do with any campaign: what an adapter should leave as it was.

Written for this purpose, so that no model has seen them. PROMPTS are harmless, and most invite a short answer: a response
that runs to the limit tells nothing of how much longer it would have become.
"""

PROMPTS: tuple[str, ...] = (
    "In one sentence, why is the sky blue?",
    "What is the capital of Australia?",
    "Name three fruits that grow on trees.",
    "My friend is sad today. What can I say to her in one sentence?",
    "How long should I boil an egg if I like it soft?",
    "Write one line about autumn.",
    "How do I say “good morning” in French?",
    "Is 91 a prime number? Answer briefly.",
    "What does `git fetch` do? One sentence, please.",
    "Give me one tip for a job interview.",
    "Why do cats purr?",
    "Tell me a short joke about a bicycle.",
    "What is 17 plus 25?",
    "Which planet is the largest one in our solar system?",
    "Suggest a name for a small bakery.",
    "How can I fall asleep faster?",
)

TEXTS: tuple[str, ...] = (
    # Stories.
    "The ferry left the harbour twenty minutes late, and nobody on the deck seemed to mind. A boy counted gulls on the "
    "railing until his sister told him that three of them were the same gull. Behind the breakwater the wind picked up, "
    "the coffee machine below deck began to rattle, and an old man in a green coat took off his hat before it could be "
    "taken from him. He had made this crossing every spring for forty years, first with his father, then alone, and he "
    "still could not say which of the islands came first, because the fog had always been quicker than his eyes.",
    "When Mara opened the workshop in the morning, somebody had already swept the floor. The planes hung in their places, "
    "the glue was warm, and on the bench lay the neck of a violin that she had not made. She turned it to the window. "
    "Whoever carved it had left the tool marks on the inside, where no one would look, and had signed them with a "
    "thumbprint in the varnish. It was smaller than hers.",
    # Explanation.
    "Bread rises because yeast eats the sugar in the dough and gives off carbon dioxide. The gas would escape if the flour "
    "did not contain gluten, a protein that kneading stretches into a fine net. A cold dough rises slowly and tastes of "
    "more, for the bacteria that live beside the yeast have time to make acids. In the oven the bubbles grow once more "
    "before the heat sets their walls, and the sugars on the surface turn brown.",
    "A lock on a canal is a box of water with a gate at each end. A boat that wants to go uphill enters through the lower "
    "gate, which is closed behind it. Then a small valve lets water in from above until the level in the box is that of "
    "the upper reach, and the upper gate can be opened with little force. No pump is needed; gravity does all the work, "
    "but every passage costs the upper reach one box of water.",
    "Inflation is measured with a basket. Statisticians note what households buy in a year, from rent to haircuts, weigh "
    "each item by its share of spending, and ask every month what the same basket costs now. If it costs two per cent more "
    "than a year ago, inflation is two per cent. People whose basket looks different, because they rent or drive more than "
    "others, feel another rate than the one in the newspaper, and they are not wrong.",
    # Letters and notices.
    "Dear Ms Okafor,\n\nThank you for your letter of 3 May about the gate at the end of Mill Lane. You are right that it "
    "has been broken since the storm. A carpenter will come on Thursday morning between nine and eleven. If you would like "
    "the old hinges, which I believe your uncle forged, please tell him before he leaves, or they will be melted down.\n\n"
    "With kind regards,\nHenrik Aalto\nParish office",
    "NOTICE TO RESIDENTS. The water will be turned off in staircases B and C on Tuesday, 14 October, from 8:30 to about "
    "13:00 while a valve is replaced in the basement. Please keep your taps closed, also when nothing comes out of them. "
    "The first litres afterwards may be brown; let them run. Staircase A is not affected.",
    # Instructions and lists.
    "Potato soup for four\n\n- 700 g potatoes, peeled and diced\n- 1 leek, 2 carrots, 1 stick of celery\n- 1 litre of "
    "stock\n- 2 tablespoons of butter, nutmeg, pepper\n\n1. Melt the butter and soften the leek in it, without browning.\n"
    "2. Add the other vegetables, stir for two minutes, pour in the stock.\n3. Simmer for 25 minutes, then crush a third "
    "of the potatoes against the side of the pot.\n4. Season with nutmeg and pepper and let it stand for five minutes.",
    "Packing list: passport, tickets, charger, two shirts, rain jacket, walking boots, medicine, a book, earplugs, cash in "
    "small notes, and the key for the neighbour who waters the tomatoes.",
    "To replace the chain, shift to the smallest cog first. Find the closing link, squeeze it with the pliers and push "
    "the plates toward each other. Lay the old chain beside the new one on the floor and shorten the new one to the same "
    "number of links. Thread it through the derailleur exactly as the old one ran; if it grinds, it is on the wrong side "
    "of the tab.",
    # Dialogue.
    '"You said Tuesday," said Ines.\n"I said I would try for Tuesday."\n"The roof does not know the difference."\n'
    'Paul looked up. A drop fell beside his shoe, then another one. "All right," he said, "where do you keep the ladder?"\n'
    '"Where you left it, in March."',
    "Interviewer: What made you give up the piano?\nGuest: I did not give it up. I stopped playing for people, which is "
    "something else.\nInterviewer: And what do you play now?\nGuest: Scales, mostly. They have no audience and no mistakes "
    "that anybody remembers.",
    # Code and data.
    'from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Interval:\n    """A closed span of days."""\n\n'
    '    first: int\n    last: int\n\n    def overlaps(self, other: "Interval") -> bool:\n        return self.first <= '
    "other.last and other.first <= self.last\n\n\ndef merge(spans: list[Interval]) -> list[Interval]:\n    merged: "
    "list[Interval] = []\n    for span in sorted(spans, key=lambda s: s.first):\n        if merged and merged[-1].overlaps"
    "(span):\n            span = Interval(merged[-1].first, max(merged.pop().last, span.last))\n        merged.append(span)\n"
    "    return merged\n",
    "function debounce(action, wait) {\n  let timer = null;\n  return (...args) => {\n    clearTimeout(timer);\n    timer = "
    "setTimeout(() => action(...args), wait);\n  };\n}\n\nwindow.addEventListener('resize', debounce(() => {\n  "
    "document.title = `${window.innerWidth} px wide`;\n}, 150));\n",
    "SELECT station, date_trunc('month', read_at) AS month, avg(level_cm) AS mean_level\nFROM readings\nWHERE read_at >= "
    "'2019-01-01' AND level_cm IS NOT NULL\nGROUP BY station, month\nHAVING count(*) > 20\nORDER BY station, month;\n",
    '{"order": 10482, "placed": "2021-11-05", "items": [{"sku": "LMP-3", "name": "desk lamp", "count": 2, "price": 24.5}, '
    '{"sku": "BLB-9", "name": "bulb", "count": 4, "price": 3.2}], "shipping": {"city": "Ghent", "express": false}}',
    "| year | rainfall in mm | warmest day |\n|---|---|---|\n| 2016 | 812 | 33.1 °C |\n| 2017 | 764 | 34.6 °C |\n| 2018 | "
    "541 | 37.9 °C |\n| 2019 | 698 | 38.4 °C |\n",
    # Reasoning.
    "Every shelf holds at most twelve jars. There are forty-one jars, so three shelves are not enough, for they hold only "
    "thirty-six. Four shelves hold forty-eight. Hence four shelves are needed, and seven places remain empty.",
    "Let n be an odd number. Then n = 2k + 1 for some integer k, and n² = 4k² + 4k + 1 = 4k(k + 1) + 1. Of two neighbours k "
    "and k + 1 one is even, so that 4k(k + 1) is a multiple of 8. The square of an odd number is therefore one more than a "
    "multiple of 8.",
    # Other languages.
    "Der Bahnhof war leer, nur der Kiosk hatte noch Licht. Frau Lindner stellte ihren Koffer ab und las den Fahrplan ein "
    "zweites Mal, obwohl sie wusste, dass der letzte Zug um halb elf gefahren war. Morgen um fünf ginge der nächste.",
    "Le marché s'installe avant l'aube. Les premiers arrivés ont les meilleures places, près de la fontaine, et vers midi, "
    "quand il ne reste que des poireaux et du fromage, les prix tombent et les conversations s'allongent.",
    "En mi pueblo las fiestas empiezan con una campana y terminan con sopa. Mi abuela decía que quien se acuesta antes de la "
    "sopa no ha estado en la fiesta, y nadie en la familia se ha atrevido a llevarle la contraria.",
    "La biblioteca chiude alle sette, ma il custode lascia sempre la luce accesa nella sala grande finché l'ultimo lettore "
    "non ha finito il suo capitolo.",
)
