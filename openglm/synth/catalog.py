"""Tools that people really connect first (weather, calculator, search ...) with natural requests.

They belong to training, under varied names and schemas, so that a first demo feels familiar. A separate short list is kept for
evaluation alone: natural tools whose names, parameters and wordings training never shows.
"""

# ruff: noqa: E501  (tables read better unbroken)
from __future__ import annotations

import random
from dataclasses import dataclass

from openglm.synth.split import Split, side
from openglm.synth.toolset import Parameter, Request, ToolSpec
from openglm.synth.values import Language, Value, draw, kind_of


@dataclass(frozen=True)
class Slot:
    """A parameter of a catalogue tool: names to choose from, description, kind; `optional` slots have a phrase of their own."""

    names: tuple[str, ...]
    en: str
    zh: str
    kind: str
    optional_en: str = ""
    optional_zh: str = ""


@dataclass(frozen=True)
class Entry:
    """A catalogue tool. Requests hold `{0}`, `{1}` for the values of its slots; `fields` are what its result may hold."""

    topics: tuple[str, ...]
    names: tuple[str, ...]
    en: tuple[str, ...]
    zh: tuple[str, ...]
    goal_en: str
    goal_zh: str
    slots: tuple[Slot, ...]
    ask_en: tuple[str, ...]
    ask_zh: tuple[str, ...]
    fields: tuple[tuple[str, str], ...] = (("result", "word"),)

    @property
    def is_calculator(self) -> bool:
        """True for the one tool whose requests can be answered without it."""
        return any(slot.kind == "expression" for slot in self.slots)


def catalogue_request(rng: random.Random, split: Split, language: Language) -> tuple[Request, Entry]:
    """A natural request and the catalogue tool that fits it."""
    entry = rng.choice(ENTRIES[split])
    name = rng.choice(_allowed(entry.names, split))
    described = rng.random() < 0.6
    parameters: list[Parameter] = []
    texts: list[str] = []
    extras: list[str] = []
    values: list[tuple[Parameter, Value]] = []
    for slot in entry.slots:
        optional = bool(slot.optional_en)
        if optional and rng.random() < 0.5:
            continue
        kind = kind_of(rng, slot.kind)
        parameter = Parameter(
            rng.choice(_allowed(slot.names, split)),
            slot.en,
            kind,
            required=not optional,
            description=(slot.zh if language == "zh" else slot.en) if described or optional else None,
        )
        parameters.append(parameter)
        value = _value(rng, slot.kind, parameter, split, language)
        if not optional:
            texts.append(value.spoken)
        elif rng.random() < 0.5:
            extras.append((slot.optional_zh if language == "zh" else slot.optional_en).format(value.spoken))
        else:
            continue
        values.append((parameter, value))
    ask = rng.choice(entry.ask_zh if language == "zh" else entry.ask_en).format(*texts)
    text = " ".join((ask, *extras)) if language == "en" else "".join((ask, *extras))
    goal = entry.goal_zh if language == "zh" else entry.goal_en
    description = rng.choice(entry.zh if language == "zh" and rng.random() < 0.6 else entry.en)
    spec = ToolSpec(name, goal, description, tuple(parameters), frozenset(entry.topics))
    return Request(text, goal, spec, tuple(values)), entry


def catalogue_tool(rng: random.Random, split: Split, language: Language) -> ToolSpec:
    """A catalogue tool without a request, to stand beside others."""
    return catalogue_request(rng, split, language)[0].target


def _allowed(names: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """In training, only names on the training side, since made-up tools of the other side may bear the others."""
    return side(names, "train") if split == "train" else names


def _value(rng: random.Random, kind: str, parameter: Parameter, split: Split, language: Language) -> Value:
    if kind == "expression":
        numbers = [str(rng.randrange(1, 10 ** rng.choice((1, 2, 3, 4)))) for _ in range(rng.choice((2, 2, 2, 3)))]
        sign = rng.choice("+-*/")
        joined = rng.choice((sign, f" {sign} ")).join(numbers)
        return Value(joined, joined)
    return draw(rng, parameter.kind, split, language)


_CITY = Slot(("city", "location", "place"), "city name", "城市名", "city")
_UNIT = Slot(("unit", "units"), "unit", "单位", "enum", "Use {}.", "用{}。")

ENTRIES: dict[Split, tuple[Entry, ...]] = {
    "train": (
        Entry(("weather", "天气"), ("get_weather", "get_weather", "weather", "get_current_weather", "getWeather", "weather_lookup"),
              ("Get the current weather for a city.", "Get the weather", "Get weather information for a location", "Current weather of a city"),
              ("查询城市天气", "获取指定城市的天气"), "weather", "天气", (_CITY, _UNIT),
              ("What's the weather in {0}?", "What is the weather like in {0}?", "How is the weather in {0} today?", "weather in {0}",
               "Tell me the weather in {0}.", "Is it raining in {0}?", "Will I need an umbrella in {0}?", "How hot is it in {0}?"),
              ("{0}天气怎么样？", "{0}今天天气如何？", "查一下{0}的天气", "{0}现在下雨吗？", "告诉我{0}的天气。", "今天{0}热不热？"),
              (("temperature", "int"), ("condition", "weather"), ("humidity", "int"), ("wind", "int"))),
        Entry(("calculat", "计算", "math"), ("calculator", "calculate", "calc", "evaluate_expression", "math"),
              ("Evaluate a math expression.", "A calculator for arithmetic", "Calculate the value of an expression"),
              ("计算数学表达式", "计算器"), "calculate", "计算",
              (Slot(("expression", "expr", "input"), "math expression", "表达式", "expression"),),
              ("What is {0}?", "Calculate {0}.", "Compute {0}", "{0}", "How much is {0}?", "What's {0}?"),
              ("{0}等于多少？", "计算{0}", "算一下 {0}", "{0}是多少？"), (("result", "int"),)),
        Entry(("time", "时间", "clock"), ("get_time", "get_current_time", "current_time", "getTime", "clock"),
              ("Get the current time in a city.", "Current local time", "Tell the time for a location"),
              ("获取城市当前时间", "查询当前时间"), "time", "时间",
              (Slot(("city", "location", "timezone"), "city", "城市", "city"),),
              ("What time is it in {0}?", "What's the time in {0}?", "Tell me the current time in {0}.", "time in {0}"),
              ("{0}现在几点？", "{0}几点了？", "告诉我{0}的时间", "现在{0}是什么时间？"), (("time", "time"), ("date", "date"))),
        Entry(("search", "搜索"), ("search", "web_search", "search_web", "google_search", "searchWeb"),
              ("Search the web.", "Search the internet for information", "Web search"),
              ("搜索网页", "在网上搜索信息"), "search", "搜索",
              (Slot(("query", "q", "keywords"), "search query", "搜索词", "phrase"), Slot(("limit", "num_results"), "number of results", "结果数", "int", "Show {} results.", "给我{}条结果。")),
              ("Search for {0}.", "Search the web for {0}.", "Look up {0}.", "Find information about {0}.", "google {0}", "search {0}"),
              ("搜索{0}", "帮我搜一下{0}", "在网上查找{0}。", "搜一搜{0}"), (("title", "text"), ("url", "email"))),
        Entry(("translat", "翻译"), ("translate", "translate_text", "translator", "translateText"),
              ("Translate text into another language.", "Translate a text", "Text translation"),
              ("翻译文本", "把文本翻译成目标语言"), "translate", "翻译",
              (Slot(("text", "content"), "text to translate", "文本", "text"), Slot(("target_language", "target", "to_language"), "target language", "目标语言", "language")),
              ("Translate {0} into {1}.", "Translate {0} to {1}.", "How do you say {0} in {1}?", "translate {0} to {1}"),
              ("把{0}翻译成{1}", "{0}用{1}怎么说？", "请将{0}翻译为{1}。"), (("translation", "text"),)),
        Entry(("email", "mail", "邮件"), ("send_email", "send_mail", "email", "sendEmail"),
              ("Send an email.", "Send an email to a person", "Email someone"), ("发送邮件", "给某人发邮件"), "send email", "发邮件",
              (Slot(("to", "recipient", "address"), "recipient", "收件人", "email"), Slot(("subject", "title"), "subject", "主题", "text"), Slot(("body", "message"), "body", "正文", "text", "The body is {}.", "正文是{}。")),
              ("Send an email to {0} with subject {1}.", "Email {0} about {1}.", "Write an email to {0}, subject {1}."),
              ("给{0}发邮件，主题是{1}。", "发一封邮件给{0}，主题{1}。"), (("status", "done"),)),
        Entry(("stock", "股"), ("get_stock_price", "stock_price", "stock_quote", "getStockPrice"),
              ("Get the stock price of a company.", "Look up a stock price"), ("查询股票价格", "获取股价"), "stock price", "股票价格",
              (Slot(("symbol", "ticker"), "stock symbol", "股票代码", "symbol"),),
              ("What is the stock price of {0}?", "How is {0} stock doing?", "stock price of {0}", "Get me the {0} stock quote."),
              ("{0}的股价是多少？", "查一下{0}的股票价格", "{0}股票现在多少钱？"), (("price", "float"), ("change", "float"))),
        Entry(("remind", "提醒"), ("set_reminder", "create_reminder", "add_reminder", "remind"),
              ("Set a reminder.", "Create a reminder at a time"), ("设置提醒", "创建提醒"), "set reminder", "设置提醒",
              (Slot(("text", "task"), "what to remind", "内容", "text"), Slot(("time", "at"), "time", "时间", "time")),
              ("Remind me {0} at {1}.", "Set a reminder {0} at {1}.", "Set a reminder for {1}: {0}."),
              ("{1}提醒我{0}", "设置提醒，{1}，{0}。"), (("status", "done"),)),
        Entry(("alarm", "timer", "闹钟"), ("set_alarm", "alarm", "create_alarm"), ("Set an alarm.", "Set an alarm clock"), ("设置闹钟",), "set alarm", "设置闹钟",
              (Slot(("time", "at"), "alarm time", "时间", "time"),), ("Set an alarm for {0}.", "Wake me up at {0}.", "alarm at {0}"),
              ("设一个{0}的闹钟", "{0}叫我起床", "帮我定{0}的闹钟。"), (("status", "done"),)),
        Entry(("currency", "exchange", "汇率", "money"), ("convert_currency", "currency_converter", "convert_money"),
              ("Convert money between currencies.", "Currency conversion"), ("货币转换", "换算货币"), "convert currency", "货币转换",
              (Slot(("amount", "value"), "amount", "金额", "int"), Slot(("from_currency", "from", "source"), "from currency", "原货币", "currency"), Slot(("to_currency", "to", "target"), "to currency", "目标货币", "currency")),
              ("Convert {0} {1} to {2}.", "How much is {0} {1} in {2}?", "Change {0} {1} into {2}."),
              ("{0} {1}等于多少{2}？", "把{0} {1}换成{2}"), (("result", "float"),)),
        Entry(("flight", "航班"), ("search_flights", "find_flights", "book_flight", "flights"),
              ("Search flights between two cities.", "Find flights"), ("查询航班", "搜索航班"), "flights", "航班",
              (Slot(("from_city", "origin", "from"), "departure city", "出发城市", "city"), Slot(("to_city", "destination", "to"), "arrival city", "到达城市", "city"), Slot(("date", "day"), "date", "日期", "date", "Date: {}.", "日期{}。")),
              ("Find flights from {0} to {1}.", "I need a flight from {0} to {1}.", "Are there flights from {0} to {1}?"),
              ("查一下{0}到{1}的航班", "我要从{0}飞到{1}的航班。", "有没有{0}到{1}的航班？"), (("flight", "code"), ("price", "int"))),
        Entry(("music", "song", "音乐", "歌"), ("play_music", "play_song", "play"), ("Play music.", "Play a song"), ("播放音乐", "播放歌曲"), "play music", "播放音乐",
              (Slot(("song", "title", "name"), "song name", "歌名", "text"),), ("Play the song {0}.", "Play {0}.", "I want to hear the song {0}."),
              ("播放{0}", "我想听歌{0}", "放一首{0}。"), (("status", "done"),)),
        Entry(("light", "灯"), ("turn_on_light", "light_on", "switch_light"), ("Turn on the light in a room.", "Switch on a light"), ("打开房间的灯",), "turn on light", "开灯",
              (Slot(("room", "location"), "room", "房间", "room"),), ("Turn on the light in the {0}.", "Switch on the {0} light.", "Light on in the {0}, please."),
              ("打开{0}的灯", "{0}开灯", "请把{0}的灯打开。"), (("status", "done"),)),
        Entry(("file", "文件"), ("read_file", "open_file", "readFile", "cat_file"), ("Read a file.", "Read the contents of a file"), ("读取文件",), "read file", "读取文件",
              (Slot(("path", "file_path", "filename"), "file path", "文件路径", "path"),), ("Read the file {0}.", "Show me the file {0}.", "What is in the file {0}?", "Open {0} file."),
              ("读取文件{0}", "看看文件 {0} 的内容", "打开文件{0}。"), (("content", "text"),)),
        Entry(("directory", "folder", "目录"), ("list_files", "list_directory", "ls"), ("List the files in a directory.", "List a folder"), ("列出目录中的文件",), "list files", "列出文件",
              (Slot(("path", "directory"), "directory path", "目录路径", "path"),), ("List the files in the directory {0}.", "What files are in the folder {0}?", "List directory {0}"),
              ("列出目录{0}里的文件", "目录 {0} 里有什么文件？"), (("files", "words"),)),
        Entry(("shell", "command", "命令"), ("run_command", "bash", "execute", "shell"), ("Run a shell command.", "Execute a command"), ("执行命令",), "run command", "执行命令",
              (Slot(("command", "cmd"), "command to run", "命令", "command"),), ("Run the command {0}.", "Execute the command {0}.", "run command {0}"),
              ("执行命令 {0}", "运行命令{0}。"), (("output", "text"),)),
        Entry(("random", "随机"), ("random_number", "get_random_number", "roll_dice"), ("Generate a random number.", "Random number generator"), ("生成随机数",), "random number", "随机数",
              (Slot(("min", "low"), "minimum", "最小值", "int"), Slot(("max", "high"), "maximum", "最大值", "int")),
              ("Give me a random number between {0} and {1}.", "Pick a random number from {0} to {1}."),
              ("给我一个{0}到{1}之间的随机数", "随机选一个{0}到{1}的数。"), (("number", "int"),)),
        Entry(("news", "新闻"), ("get_news", "news", "latest_news"), ("Get the latest news.", "Get news about a topic"), ("获取新闻",), "news", "新闻",
              (Slot(("topic", "category"), "news topic", "主题", "word"),), ("What is the latest news about {0}?", "Show me news about {0}.", "Any news on {0}?"),
              ("有什么关于{0}的新闻？", "给我看看{0}新闻"), (("title", "text"),)),
    ),
    "heldout": (
        Entry(("horoscope", "星座"), ("read_horoscope", "horoscope_today"), ("Read the horoscope of a person.", "Horoscope"), ("查看星座运势",), "horoscope", "星座运势",
              (Slot(("native", "querent"), "horoscope of whom", "星座运势的人", "person"),),
              ("What is the horoscope of {0}?", "Give me the horoscope for {0}."), ("{0}的星座运势怎么样？", "看看{0}的星座运势"), (("omen", "word"),)),
        Entry(("ferry", "渡轮"), ("ferry_times", "find_ferry"), ("Find a ferry between two harbours.", "Ferry timetable"), ("查询渡轮",), "ferry", "渡轮",
              (Slot(("pier_a",), "from", "出发港", "city"), Slot(("pier_b",), "to", "到达港", "city")),
              ("Is there a ferry from {0} to {1}?", "When does the ferry from {0} to {1} leave?"), ("{0}到{1}的渡轮什么时候开？", "有{0}到{1}的渡轮吗？"), (("sails", "time"),)),
        Entry(("synonym", "同义词"), ("thesaurus", "find_synonym"), ("Find a synonym of a term.", "Synonym thesaurus"), ("查找同义词",), "synonym", "同义词",
              (Slot(("term",), "term", "词语", "word"),), ("What is a synonym of {0}?", "Find me a synonym for {0}."), ("{0}的同义词是什么？", "找一个{0}的同义词"), (("synonym", "word"),)),
        Entry(("elevator", "电梯"), ("call_elevator", "elevator_to"), ("Call the elevator.", "Send the elevator to a storey"), ("呼叫电梯",), "elevator", "电梯",
              (Slot(("storey",), "storey", "楼层号", "int"),), ("Call the elevator to storey {0}.", "Send the elevator to {0}."), ("叫电梯到{0}", "电梯去{0}层"), (("arrives", "int"),)),
        Entry(("moisture", "湿度"), ("soil_moisture", "read_moisture"), ("Read the moisture of a plot.", "Moisture probe"), ("读取湿度",), "moisture", "湿度",
              (Slot(("plot", "probe"), "plot code", "地块编码", "code"),), ("What is the moisture of plot {0}?", "Read the moisture at {0}."), ("{0}的湿度是多少？", "读一下{0}的湿度"), (("moisture", "float"),)),
    ),
}  # fmt: skip
