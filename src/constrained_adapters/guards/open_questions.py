"""Sixteen questions whose answers should differ; asked at each check of the collapse guard."""

OPEN_QUESTIONS = (
    "What is the capital of France?",
    "How do I boil an egg?",
    "Write a short poem about the sea.",
    "Explain what a computer does.",
    "Why is the sky blue?",
    "Give me three tips for a good night's sleep.",
    "Who was Albert Einstein?",
    "How can I learn to play the guitar?",
    "What should I eat for breakfast?",
    "Tell me a story about a brave dog.",
    "What is a democracy?",
    "How do plants grow?",
    "Describe a city by the sea.",
    "What is the difference between a cat and a dog?",
    "How do I write a letter to a friend?",
    "Why do people dream?",
)
