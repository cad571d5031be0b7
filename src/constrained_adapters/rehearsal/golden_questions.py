"""Questions and openings that the base answers and continues for its own golden set; nobody's data."""

from __future__ import annotations

from collections.abc import Mapping

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "facts": (
        "What is the capital of France?",
        "What is the capital of Japan?",
        "What is the capital of Egypt?",
        "Which planet is closest to the Sun?",
        "Which planet is the largest in the solar system?",
        "How many days are in a leap year?",
        "How many continents are there?",
        "Which gas do plants take in from the air?",
        "What is the chemical symbol of gold?",
        "What is the chemical formula of water?",
        "At how many degrees Celsius does water boil at sea level?",
        "Which ocean lies between Europe and North America?",
        "Who wrote Romeo and Juliet?",
        "In which country are the pyramids of Giza?",
        "What do bees make from nectar?",
        "Which organ pumps blood through the body?",
        "How many legs does a spider have?",
        "Which language is spoken in Brazil?",
        "What is the name of the star that the Earth goes around?",
        "In which year did the Second World War end?",
    ),
    "reasoning": (
        "What is 7 + 5? Answer with the number only.",
        "What is 9 - 4? Answer with the number only.",
        "What is 6 times 8? Answer with the number only.",
        "What is half of 18? Answer with the number only.",
        "Which number comes next: 2, 4, 6, 8? Answer with the number only.",
        "Which number comes next: 1, 2, 4, 8? Answer with the number only.",
        "Which is larger, 19 or 91? Answer with the number only.",
        "If today is Monday, which day is tomorrow? Answer with one word.",
        "If all cats are animals and Tom is a cat, is Tom an animal? Answer yes or no.",
        "Anna is taller than Ben, and Ben is taller than Carl. Who is the shortest? Answer with the name.",
        "I had 3 apples and ate one. How many are left? Answer with the number only.",
        "A train leaves at 3 o'clock and travels for 2 hours. At which hour does it arrive?",
        "Which word does not belong: apple, banana, car, cherry? Answer with one word.",
        "What is the opposite of hot? Answer with one word.",
        "Hand is to glove as foot is to what? Answer with one word.",
        "Can a square have five sides? Answer yes or no.",
    ),
}
"""By kind; short answers, so that several draws can agree."""

OPENINGS: tuple[str, ...] = (
    "Once upon a time",
    "The weather this morning",
    "In the middle of the city",
    "Dear Sir or Madam,",
    "Thank you for your letter.",
    "First, preheat the oven",
    "The history of the region",
    "She opened the door and",
    "According to the report,",
    "To install the program,",
    "On the one hand,",
    "He asked her whether",
    "The main difference between the two",
    "Scientists have found that",
    "When I was a child,",
    "The meeting was held",
)
"""Beginnings of texts of different kinds: stories, letters, instructions, reports."""
