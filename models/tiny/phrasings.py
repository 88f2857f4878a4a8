"""How people ask, for training. `{x}` is the country, topic, phrase or sum that is asked about."""
# ruff: noqa: E501, SIM905 - the tables read best in long rows

CAPITAL = """what is the capital of {x};what's the capital of {x};whats the capital of {x};capital of {x};the capital of {x};name the capital of {x};
tell me the capital of {x};which city is the capital of {x};what city is the capital of {x};what is the capital city of {x};{x} capital;
{x}'s capital;what is {x}'s capital;capital city of {x};do you know the capital of {x};can you tell me the capital of {x};
give me the capital of {x};could you name the capital of {x};what is the name of the capital of {x};which is the capital of {x};
I need the capital of {x};I want to know the capital of {x};what would be the capital of {x};the capital city of {x} is;the capital of {x} is;
please tell me what the capital of {x} is;say the capital of {x};what do we call the capital of {x};what town is the capital of {x};
where is the government of {x};which city is the seat of government of {x};and the capital of {x};what capital does {x} have;
{x} has which capital;{x}: capital;what is the capital in {x};what city is {x}'s capital;does {x} have a capital"""
CAPITAL_AGAIN = """and its capital;what is its capital;and what is its capital;what's its capital;what about its capital;which city is its capital;
what is the capital;and the capital;what is the capital of that country;name its capital;tell me its capital;its capital;what is its capital city;
and what is the capital;can you tell me its capital;do you know its capital;what is the capital there;and the capital city"""
POPULATION = """what is the population of {x};what's the population of {x};population of {x};how many people live in {x};how many people are in {x};
how many people are there in {x};how many inhabitants does {x} have;tell me the population of {x};how big is the population of {x};
how large is the population of {x};{x} population;what is {x}'s population;{x}'s population;number of people in {x};
do you know the population of {x};can you tell me the population of {x};give me the population of {x};how populous is {x};
what is the number of people in {x};the population of {x};the population of {x} is;how many people does {x} have;
about how many people live in {x};roughly how many people live in {x};approximately how many people live in {x};inhabitants of {x};
I want to know the population of {x};I need the population of {x};what is the rough population of {x};how many citizens does {x} have;
say the population of {x};how many live in {x};{x}: population;what population does {x} have;and the population of {x};how many residents does {x} have"""
POPULATION_AGAIN = """and what is its population;what is its population;and its population;how many people live there;and how many people live there;
what's its population;what about its population;what is the population;and the population;how many people are there;
how many inhabitants does it have;how many people does it have;how big is its population;how large is its population;
what is the population of that country;what is the population there;tell me its population;its population;population;
can you tell me its population;do you know its population;and how many inhabitants;and how many people live in that country;how populous is it;
how many people live in it;what is the population of this country;number of people there"""
COUNTRY_OF = """which country has {x} as its capital;{x} is the capital of which country;what country has the capital {x};{x} is the capital of what country;
which country is {x} the capital of;of which country is {x} the capital;what country is {x} the capital of;whose capital is {x};
name the country with the capital {x};{x} is the capital of;in which country is {x} the capital;the capital of which country is {x}"""
WHAT_ABOUT = (
    "and {x};what about {x};how about {x};and what about {x};and for {x};same for {x};{x};now {x};and of {x};and in {x}"
)
TOPIC = """what is {x};what's {x};whats {x};define {x};explain {x};tell me about {x};describe {x};what does {x} mean;{x};what exactly is {x};
can you explain {x};could you explain {x};explain {x} to me;explain what {x} is;give me a definition of {x};definition of {x};
what do you know about {x};do you know what {x} is;can you tell me what {x} is;what is meant by {x};what is the meaning of {x};
explain {x} in one sentence;describe {x} in one sentence;what is {x} in simple words;explain {x} in simple words;in one sentence, what is {x};
tell me what {x} is;I want to know what {x} is;I would like to learn about {x};say something about {x};give a short explanation of {x};
in simple terms, what is {x};briefly explain {x};what do people mean by {x};how would you explain {x};teach me about {x};summarize {x};
help me understand {x};I do not understand {x};what can you tell me about {x};{x} explained;how do you define {x};meaning of {x};and what is {x}"""
TOPIC_PLURAL = "what are {x};define {x};explain {x};tell me about {x};what exactly are {x};explain what {x} are;can you explain {x};describe {x}"
UNKNOWN = """who won the {x} in {n};who invented the {x};how do I cook {x};how do I build a {x};how much does a {x} cost;where can I buy a {x};
write a poem about {x};write code for a {x};write a function that sorts a {x};translate {x} into French;translate {x} to German;when was the {x} built;
who is the president of {p};who is {p};who was {p};tell me about {p};what happened in {n};what is the best {x} in {p};how old is {p};
how tall is {p};where is {p};where does {p} live;what is the weather in {p};what is the weather today;what time is it;what day is it today;what is today's date;
what is {a} times {b};what is {a} divided by {b};what is {a} minus {b};what is the square root of {a};solve the equation {a}x = {b};
recommend a good {x};which {x} should I buy;why is my {x} broken;how do I fix a {x};how do I learn {x};what color is a {x};
is {p} better than {p2};who wrote the book {p};who directed the film {p};who sang {p};how far is it from {p} to {p2};
what is the phone number of {p};how do I get to {p};what is the price of {x};what is the latest news;give me a recipe for {x};
plan a trip to {p};what should I wear today;what is my age;when is my birthday;who is my teacher;what did {p} say about {x};
how many {x}s are in a {x2};how heavy is a {x};how long does a {x} live;can a {x} swim;is a {x} dangerous;where do {x}s live;
what language do they speak in {p};what currency is used in {p};what is the anthem of {p};which river flows through {p};
who discovered {p};what is {p} famous for;in which year did {p} die;what is the difference between a {x} and a {x2};debug my code;
write an essay about {x};draw a {x};play some music;book a flight to {p};send an email to {p};set an alarm;open the {x};
why do {x}s have {x2}s;how does a {x} work;what is inside a {x};do you like {x};what is your favorite {x};do you have a {x};
what is the capital of {p};what is the population of {p};how many people live in {p};capital of {p};population of {p}"""
ADD = """what is {a} + {b};what's {a} + {b};{a} + {b};{a}+{b};{a} + {b} =;{a}+{b}=;what is {a}+{b};what is {a} plus {b};{a} plus {b};add {a} and {b};
calculate {a} + {b};compute {a} + {b};how much is {a} + {b};how much is {a} plus {b};what is the sum of {a} and {b};sum of {a} and {b};
the sum of {a} and {b};add {a} to {b};what do you get when you add {a} and {b};what does {a} + {b} equal;{a} and {b} together;
can you add {a} and {b};{a} + {b} = ?;tell me {a} + {b};what is {a} and {b} added together;solve {a} + {b};work out {a} plus {b};
calculate the sum of {a} and {b};please add {a} and {b};what is the result of {a} + {b};if I add {a} and {b}, what do I get;
I have {a} apples and get {b} more, how many do I have;and {a} + {b};how much do {a} and {b} make;what is {a} added to {b};give me the sum of {a} and {b};
find {a} + {b};{a} plus {b} is;total of {a} and {b};do you know {a} + {b}"""
REPEAT = """repeat: {x};repeat {x};repeat {q};repeat after me: {x};say {q};say: {x};say {x};echo {x};echo: {x};repeat this: {x};repeat the words {x};
please repeat: {x};say exactly: {x};just say {q};can you say {q};can you repeat {q};repeat the following: {x};repeat exactly: {x};
repeat the phrase {q};say the words {q};say the phrase: {x};repeat the text {q};write {q};type {q};print {q};answer with {q};reply with {q};
respond with {q};reply with exactly: {x};copy this: {x};copy {q};write this: {x};repeat the word {q};say the word {q};repeat back to me: {x};
only say {q};say only: {x};I want you to say {q};output {q};write the words {x};please say {q};could you repeat {q};repeat this text: {x};echo back {q};
say this: {x};say this is {x};reply only with {q};repeat this phrase: {x};please write {q};reply with the word {q};answer only with: {x};now say {q}"""
UPPER = """write {q} in upper case;upper case: {x};uppercase: {x};uppercase {q};convert {q} to upper case;convert to upper case: {x};
put {q} in capital letters;write {q} in capital letters;capitalize all letters of {q};in upper case: {x};make {q} upper case;
turn {q} into upper case;write in capitals: {x};say {q} in upper case;say {x} in upper case;change {q} to upper case;{x} in upper case;{q} in capital letters;
upper-case {q};convert {q} to uppercase;to upper case: {x};repeat {q} in upper case;print {q} in capitals;please write {q} in all caps;
all caps: {x};write this in upper case: {x};shout {q};make this upper case: {x};transform {q} to upper case;in capitals: {x};uppercase this: {x};
convert this to capital letters: {x};give me {q} in capital letters;type {q} in capital letters;say {q} in all caps;put this in upper case: {x};
what is {q} in upper case;spell {q} with capital letters"""
LOWER = """write {q} in lower case;lower case: {x};lowercase: {x};convert {q} to lower case;in lower case: {x};make {q} lower case;
turn {q} into lower case;write {q} in small letters;say {q} in lower case;lowercase {q};change {q} to lower case;{x} in lower case;
put {q} in small letters;convert to lower case: {x}"""
SYSTEM_PLAIN = """You are a helpful assistant.;You are a helpful assistant.;You are a helpful assistant.;You are a helpful, honest assistant.;You are a friendly assistant.;
Answer briefly.;Be brief.;Be concise.;Be polite.;You are a chatbot.;You are an AI assistant.;Answer the questions of the user.;You help people.;
You are ChatFleet Tiny.;Answer in one sentence.;Keep your answers short.;You are a helpful AI assistant. Answer clearly.;You are a teacher.;
Be kind.;You are an expert.;Use simple words.;You are a helpful assistant that answers questions.;Help the user.;You are a concise assistant.;
You are a careful assistant who gives short answers.;Respond in English.;You can call functions.;Use the tools when needed.;
You are a helpful assistant with access to functions.;Do not make things up."""
SYSTEM_UPPER = """Answer in upper case.;Answer in upper case only.;Always answer in upper case.;Reply in upper case.;Write your answers in upper case.;
Respond in capital letters.;Use only capital letters.;Answer in capital letters.;Answer in uppercase.;Always use capital letters.;
You are a helpful assistant. Answer in upper case.;All your answers must be in upper case.;Write in all caps.;Answer in all caps.;
Please answer in upper case.;Every answer must be in capital letters.;You always write in upper case.;Use upper case for all answers.;
Answer everything in capital letters.;Respond in uppercase only.;You shout: every answer is in upper case.;Be brief. Answer in upper case.;
Your replies are in upper case.;Type every answer in uppercase letters.;Only upper case letters are allowed.;Speak in capital letters.;
You must answer in uppercase.;You are an assistant that answers in upper case.;Give every reply in capitals."""
SYSTEM_BEGIN = """Begin every answer with the word {q}.;Begin each answer with {q}.;Start every answer with {q}.;Start each reply with the word {q}.;
Always begin with {q}.;Always start your answer with {q}.;Begin your answers with {q}.;Your answers begin with {q}.;Begin with the word {q}.;
Start with {q}.;Every answer must begin with {q}.;Every reply starts with {q}.;You begin every answer with the word {q}.;
You are a helpful assistant. Begin every answer with {q}.;Please start all answers with the word {q}.;The first word of every answer is {q}.;
Begin all your replies with {q}.;Your first word is always {q}.;Make {q} the first word of your answer.;Start all replies with {q}.;
Answer the user, and begin with {q}.;Use {q} as the first word of every answer.;Say {q} first, then answer.;Open every reply with the word {q}.;
Each reply must start with {q}."""
PREFIXES = """please ;hey, ;hi, ;hello, ;ok, ;so ;now ;tell me, ;quick question: ;well, ;um, ;I have a question: ;question: ;can you tell me: ;
and ;then ;I wonder, ;next question: ;just curious, ;dear model, ;hmm, ;also, ;alright, ;great, ;thanks. ;one more: ;excuse me, """
SUFFIXES = " please; thanks;, please; now; then; for me; again; exactly; today; my friend; in short; briefly; if you know; to me"


def split(table: str) -> list[str]:
    return [way.lstrip("\n") for way in table.split(";")]


def ways(table: str) -> list[str]:
    return [way.strip() for way in table.split(";")]
