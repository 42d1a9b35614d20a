"""Who the model is, greetings, limits, echo, following a system prompt, and short mixed dialogues."""

# ruff: noqa: E501  (tables read better unbroken)
from __future__ import annotations

import random

from openglm.synth.arithmetic import add, compare
from openglm.synth.episode import Episode, answered, reply
from openglm.synth.invention import invented_word
from openglm.synth.lexicon import WORDS
from openglm.synth.split import Split
from openglm.synth.values import Language, string
from openglm.text.messages import Conversation, Message

Talk = tuple[str, str, str]  # question, answer, thought


def chat(rng: random.Random, split: Split, language: Language) -> Episode:
    """One exchange of small talk."""
    text, answer, thought = small_talk(rng, language)
    if rng.random() < 0.25:
        text, answer, thought = _unknown(rng, split, language)
    episode = answered("chat", text, answer, thought, thinking=rng.random() < 0.6)
    if rng.random() < 0.15:
        system = Message("system", rng.choice(("You are a helpful assistant.", "Be brief.", "你是一个有用的助手。")))
        conversation = Conversation((system, *episode.conversation.messages), thinking=episode.conversation.thinking)
        return Episode("chat", conversation)
    return episode


def persona(rng: random.Random, split: Split, language: Language) -> Episode:
    """The system prompt gives a name (and sometimes a job); the answer uses them."""
    name = string(rng, "person", split, language)
    job = rng.choice(WORDS[split].plain)
    if language == "zh":
        system, text, answer = rng.choice((
            (f"你叫{name}。", rng.choice(("你是谁？", "你叫什么名字？")), f"我是{name}。"),
            (f"你的名字是{name}，是一位{job}。", rng.choice(("你是谁？", "请介绍一下自己。")), f"我是{name}，{job}。"),
        ))  # fmt: skip
    else:
        system, text, answer = rng.choice((
            (f"You are {name}.", rng.choice(("Who are you?", "What is your name?", "who are you")), f"I am {name}."),
            (f"Your name is {name}. You are a {job}.", rng.choice(("Who are you?", "Introduce yourself.")), f"I am {name}, a {job}."),
        ))  # fmt: skip
    thinking = rng.random() < 0.6
    thought = f"name = {name}"
    messages = (Message("system", system), Message("user", text), reply(answer, thought, thinking))
    return Episode("persona", Conversation(messages, thinking=thinking))


def echo(rng: random.Random, split: Split, language: Language) -> Episode:
    """Say the user's words again: the copying that everything else is built on."""
    kinds = ("word", "text", "city", "person", "code", "email", "date", "path", "phrase")
    count = rng.choice((1, 2, 3, 4, 5))
    pieces = [invented_word(rng, split) if rng.random() < 0.4 else string(rng, rng.choice(kinds), split, language) for _ in range(count)]
    if rng.random() < 0.3:
        pieces = [str(rng.randrange(10 ** rng.randrange(1, 6))) for _ in range(count)]
    said = " ".join(pieces)
    if language == "zh":
        text = rng.choice(("重复：{}", "请重复：{}", "跟我说：{}", "复述 {}")).format(said)
    else:
        text = rng.choice(("Repeat: {}", "Repeat after me: {}", "Say: {}", "Please repeat: {}", "Echo: {}", "say {}")).format(said)
    return answered("echo", text, said, "Repeat the text." if language == "en" else "重复这段话。", thinking=rng.random() < 0.4)


def dialogue(rng: random.Random, split: Split, language: Language) -> Episode:
    """Two or three exchanges; every answer but the last must not need thinking, since history is shown without it."""
    thinking = rng.random() < 0.6
    messages: list[Message] = []
    for _ in range(rng.choice((1, 1, 2))):
        text, answer, thought = small_talk(rng, language)
        if rng.random() < 0.25:
            name = string(rng, "person", split, language)
            if language == "zh":
                opening, question, recalled = f"我叫{name}。", "我叫什么名字？", f"你叫{name}。"
                greeting = f"你好，{name}。"
            else:
                opening, question, recalled = f"My name is {name}.", "What is my name?", f"Your name is {name}."
                greeting = f"Hello, {name}."
            messages += [Message("user", opening), reply(greeting, f"name = {name}", thinking)]
            if rng.random() < 0.7:
                messages += [Message("user", question), reply(recalled, f"name = {name}", thinking)]
                return Episode("dialogue", Conversation(tuple(messages), thinking=thinking))
        messages += [Message("user", text), reply(answer, thought, thinking)]
    last = rng.choice((add, compare, chat, chat))(rng, split, language).conversation
    return Episode("dialogue", Conversation((*messages, *last.messages[-2:]), thinking=last.thinking))


def small_talk(rng: random.Random, language: Language) -> Talk:
    """A question about the model, a greeting or a courtesy."""
    questions, answer, thought = rng.choice(_TALK[language])
    return rng.choice(questions), answer, thought


def _unknown(rng: random.Random, split: Split, language: Language) -> Talk:
    """Knowledge of the world that a model of this size does not have."""
    thing = rng.choice(WORDS[split].nouns)
    word = rng.choice((string(rng, "word", split, language), thing.zh if language == "zh" else thing.en))
    place, person = string(rng, "city", split, language), string(rng, "person", split, language)
    forms = _UNKNOWN[language]
    text = rng.choice(forms).format(word=word, place=place, person=person)
    if language == "zh":
        return text, "我是一个很小的演示模型，不知道这个。", "这是常识问题，我不知道。"
    return text, "I am a tiny demo model, I do not know that.", "This asks for knowledge. I do not know."


_UNKNOWN: dict[Language, tuple[str, ...]] = {
    "en": (
        "Why is the sky blue?", "What is the capital of {place}?", "Who is {person}?", "Explain {word}.", "What is a {word}?", "How does a {word} work?",
        "Write a poem about {word}.", "Tell me about {place}.", "Who invented the {word}?", "When was {place} founded?", "Tell me a story about a {word}.",
        "How many people live in {place}?", "What is the meaning of life?", "Write a program that sorts a {word}.", "Where does {person} live?",
    ),
    "zh": (
        "天空为什么是蓝色的？", "{place}在哪里？", "{person}是谁？", "什么是{word}？", "解释一下{word}。", "写一首关于{word}的诗。", "介绍一下{place}。",
        "谁发明了{word}？", "讲一个关于{word}的故事。", "{place}有多少人？", "人生的意义是什么？",
    ),
}  # fmt: skip

_TALK: dict[Language, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "en": (
        (("hello", "Hello", "Hello!", "Hi", "hi", "Hi!", "Hey", "hey", "Hello there", "Good morning", "Good evening", "hi there"),
         "Hello! How can I help you?", "A greeting."),
        (("How are you?", "how are you", "How are you doing?", "How is it going?", "What's up?"), "I am fine, thank you!", "A greeting."),
        (("Who are you?", "who are you", "What is your name?", "What's your name?", "Introduce yourself.", "What are you?", "what are you?",
          "Are you ChatGPT?", "Which model are you?", "Tell me about yourself."),
         "I am glm-nano, a tiny demo model of openglm.", "The user asks who I am."),
        (("What can you do?", "what can you do", "Help", "help", "What are you good at?", "How can you help me?"),
         "I can add numbers, call tools and read their results.", "The user asks what I can do."),
        (("Who made you?", "Who created you?", "Who trained you?", "Where do you come from?"), "I was trained from scratch by openglm.", "The user asks who made me."),
        (("Are you smart?", "Do you know everything?", "What are your limits?", "What can you not do?", "How big are you?"),
         "I am a tiny demo model, I know very little.", "The user asks for my limits."),
        (("What is openglm?", "what is openglm", "Tell me about openglm."), "openglm serves and trains GLM models.", "The user asks about openglm."),
        (("Thanks", "thanks", "Thank you", "Thank you!", "Thanks a lot!", "thx", "Great, thanks."), "You are welcome!", "The user says thanks."),
        (("Bye", "bye", "Goodbye", "Goodbye!", "See you", "Good night"), "Goodbye!", "The user leaves."),
        (("ok", "OK", "Okay.", "Good.", "Nice!", "Great!", "Cool"), "Good! What else can I do?", "The user is content."),
        (("Can you speak Chinese?", "Do you speak English?", "Which languages do you speak?"), "I speak a little English and Chinese.", "The user asks for languages."),
    ),
    "zh": (
        (("你好", "你好！", "您好", "嗨", "早上好", "晚上好", "你好呀", "在吗？", "大家好"), "你好！我能帮你做什么？", "用户在问候。"),
        (("你好吗？", "最近怎么样？", "你怎么样？"), "我很好，谢谢！", "用户在问候。"),
        (("你是谁？", "你是谁", "你叫什么名字？", "介绍一下你自己。", "你是什么模型？", "你是ChatGPT吗？"),
         "我是 glm-nano，openglm 的一个很小的演示模型。", "用户问我是谁。"),
        (("你能做什么？", "你会什么？", "帮助", "你有什么功能？", "你能帮我什么？"), "我会加法，会调用工具并读取结果。", "用户问我能做什么。"),
        (("谁创造了你？", "谁训练了你？", "你从哪里来？"), "我由 openglm 从零训练。", "用户问我的来历。"),
        (("你聪明吗？", "你什么都知道吗？", "你有什么不会的？", "你有多大？"), "我是一个很小的演示模型，知道得很少。", "用户问我的不足。"),
        (("什么是openglm？", "openglm是什么？"), "openglm 用来部署和训练 GLM 模型。", "用户问 openglm。"),
        (("谢谢", "谢谢！", "谢谢你", "多谢", "非常感谢"), "不客气！", "用户道谢。"),
        (("再见", "再见！", "拜拜", "晚安"), "再见！", "用户告别。"),
        (("好的", "好", "不错", "很好！", "太好了"), "好的！还有什么可以帮你？", "用户满意。"),
        (("你会说英语吗？", "你会说中文吗？", "你会哪些语言？"), "我会一点英语和中文。", "用户问语言。"),
    ),
}  # fmt: skip
