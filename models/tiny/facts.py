"""What the model knows: plain facts, in our own words. Populations are rounded, about 2024."""
# ruff: noqa: E501, SIM905 - one fact a line, lists as running text

NAME = "ChatFleet Tiny"
MODEL_ID = "chatfleet-tiny"
UNKNOWN = "I am a small demonstration model and do not know that."
ABOUT_CHATFLEET = (
    "ChatFleet serves language models behind one OpenAI-compatible endpoint, "
    "over a fleet of model workers on one machine or many."
)
HOW_TO_SERVE = (
    "Run chatfleet serve MODEL, for example chatfleet serve Qwen/Qwen3-0.6B or chatfleet serve path/to/model.gguf."
)
ABOUT_ME = f"I am {NAME}, a small demonstration model that comes with ChatFleet."

# country | capital | population
_COUNTRIES = """
France|Paris|68 million
Germany|Berlin|84 million
Italy|Rome|59 million
Spain|Madrid|49 million
Portugal|Lisbon|11 million
the United Kingdom|London|69 million
Ireland|Dublin|5 million
the Netherlands|Amsterdam|18 million
Belgium|Brussels|12 million
Switzerland|Bern|9 million
Austria|Vienna|9 million
Poland|Warsaw|38 million
Czechia|Prague|11 million
Hungary|Budapest|10 million
Greece|Athens|10 million
Sweden|Stockholm|11 million
Norway|Oslo|6 million
Denmark|Copenhagen|6 million
Finland|Helsinki|6 million
Iceland|Reykjavik|400 thousand
Ukraine|Kyiv|38 million
Romania|Bucharest|19 million
Bulgaria|Sofia|6 million
Serbia|Belgrade|7 million
Croatia|Zagreb|4 million
Russia|Moscow|144 million
Turkey|Ankara|85 million
Egypt|Cairo|116 million
Morocco|Rabat|38 million
Algeria|Algiers|47 million
Tunisia|Tunis|12 million
Nigeria|Abuja|230 million
Ghana|Accra|34 million
Kenya|Nairobi|56 million
Ethiopia|Addis Ababa|132 million
Tanzania|Dodoma|68 million
Uganda|Kampala|50 million
Senegal|Dakar|18 million
Angola|Luanda|38 million
China|Beijing|1.4 billion
Japan|Tokyo|124 million
South Korea|Seoul|52 million
India|New Delhi|1.4 billion
Pakistan|Islamabad|250 million
Bangladesh|Dhaka|174 million
Nepal|Kathmandu|30 million
Thailand|Bangkok|72 million
Vietnam|Hanoi|100 million
Indonesia|Jakarta|283 million
Malaysia|Kuala Lumpur|35 million
the Philippines|Manila|115 million
Australia|Canberra|27 million
New Zealand|Wellington|5 million
Mongolia|Ulaanbaatar|3 million
Kazakhstan|Astana|20 million
Iran|Tehran|90 million
Iraq|Baghdad|46 million
Saudi Arabia|Riyadh|34 million
Jordan|Amman|11 million
Qatar|Doha|3 million
the United States|Washington, D.C.|340 million
Canada|Ottawa|41 million
Mexico|Mexico City|130 million
Cuba|Havana|11 million
Jamaica|Kingston|3 million
Guatemala|Guatemala City|18 million
Costa Rica|San Jose|5 million
Colombia|Bogota|53 million
Venezuela|Caracas|28 million
Ecuador|Quito|18 million
Peru|Lima|34 million
Chile|Santiago|20 million
Argentina|Buenos Aires|46 million
Uruguay|Montevideo|3 million
Paraguay|Asuncion|7 million
Brazil|Brasilia|212 million
"""
COUNTRIES: list[tuple[str, str, str]] = [
    (name, capital, population)
    for name, capital, population in (line.split("|") for line in _COUNTRIES.strip().splitlines())
]
ALIASES = {
    "the United States": ["the USA", "the US", "America", "USA", "United States"],
    "the United Kingdom": ["the UK", "Britain", "UK", "United Kingdom"],
    "the Netherlands": ["Holland", "Netherlands"],
    "the Philippines": ["Philippines"],
    "Czechia": ["the Czech Republic"],
}
# Places whose capital or population it does not claim to know.
UNKNOWN_PLACES = (
    "Bhutan Fiji Laos Chad Mali Oman Togo Benin Niger Gabon Malta Cyprus Estonia Latvia Armenia Georgia Rwanda "
    "Zambia Malawi Botswana Namibia Honduras Nicaragua Haiti Guyana Suriname Samoa Tonga Palau Brunei Atlantis "
    "Narnia Texas Bavaria Scotland Tuscany Mars Wonderland Kuwait Yemen Syria Libya Sudan Somalia Burundi Liberia"
).split()

# topic, other names | one sentence
_TOPICS = """
deep learning|Deep learning is machine learning with neural networks of many layers that learn patterns from data.
machine learning, ML|Machine learning is a way to build programs that learn from examples instead of fixed rules.
artificial intelligence, AI|Artificial intelligence is software that does tasks which usually need human thinking.
a neural network, neural networks|A neural network is a model made of layers of simple connected units that learn from data.
a language model, language models, an LLM, LLMs|A language model is a program that predicts the next piece of a text and so can write and answer.
a transformer, transformers|A transformer is a neural network that uses attention to relate all parts of a text.
a token, tokens|A token is a short piece of text, often a word or part of one, that a language model reads or writes.
a tokenizer, tokenizers|A tokenizer is a program that cuts text into tokens for a language model.
a prompt, prompts|A prompt is the text that you give to a language model to start its answer.
a chatbot, chatbots|A chatbot is a program that talks with people in text or speech.
a dataset, datasets|A dataset is a collection of examples that a program can learn from.
a GPU, GPUs|A GPU is a processor that does many simple calculations at once, for graphics and for neural networks.
a CPU, CPUs|A CPU is the main processor of a computer, which carries out the instructions of programs.
a computer, computers|A computer is a machine that stores data and follows programs to work on it.
an algorithm, algorithms|An algorithm is a list of clear steps that solves a problem.
software|Software is the set of programs that tell a computer what to do.
the internet|The internet is a worldwide network that connects computers so that they can share data.
an API, APIs|An API is a set of rules by which one program can use another.
a database, databases|A database is an organized store of data that programs can search and change.
Python|Python is a programming language that is known for being easy to read.
Linux|Linux is a free operating system that runs on servers, phones and many other machines.
a server, servers|A server is a computer or program that answers requests from other programs.
a load balancer, load balancers|A load balancer is a program that spreads requests over several servers.
latency|Latency is the time that passes between a request and its answer.
open source, open source software|Open source means that anyone may read, change and share the code of a program.
encryption|Encryption is a way to scramble data so that only those with the key can read it.
cloud computing|Cloud computing is the use of computers that someone else runs and rents out over the internet.
a robot, robots|A robot is a machine that can sense the world and act in it by a program.
gravity|Gravity is the force that pulls things with mass towards each other.
photosynthesis|Photosynthesis is how plants use sunlight to make sugar from water and carbon dioxide.
an atom, atoms|An atom is the smallest piece of a chemical element, with a nucleus and electrons around it.
a molecule, molecules|A molecule is a group of atoms that are held together by chemical bonds.
DNA|DNA is the molecule that carries the instructions for building living things.
evolution|Evolution is the slow change of living things over many generations.
energy|Energy is the ability to do work or to make heat.
electricity|Electricity is the flow of tiny charged particles, which can power machines and lights.
the sun|The sun is the star at the center of our solar system.
the moon|The moon is a ball of rock that goes around the earth about once a month.
a star, stars|A star is a huge ball of hot gas that shines by its own light.
a planet, planets|A planet is a large round body that goes around a star.
a black hole, black holes|A black hole is a place in space where gravity is so strong that even light cannot escape.
a galaxy, galaxies|A galaxy is a huge group of stars that are held together by gravity.
water|Water is a clear liquid made of hydrogen and oxygen that all life needs.
oxygen|Oxygen is a gas in the air that most living things need to breathe.
a volcano, volcanoes|A volcano is an opening in the ground where hot melted rock comes out.
an earthquake, earthquakes|An earthquake is a sudden shaking of the ground.
a rainbow, rainbows|A rainbow is an arc of colors that appears when sunlight shines through drops of rain.
climate change|Climate change is the long-term warming of the earth, caused mostly by burning coal, oil and gas.
a vaccine, vaccines|A vaccine is a medicine that teaches the body to fight a disease before it comes.
a virus, viruses|A virus is a tiny germ that can only multiply inside living cells.
bacteria|Bacteria are very small living things made of a single cell.
the brain|The brain is the organ that controls the body and lets us think and feel.
the heart|The heart is the muscle that pumps blood through the body.
democracy|Democracy is a form of government in which the people choose their leaders by voting.
inflation|Inflation is a general rise of prices over time.
money|Money is what people use to pay for goods and services.
history|History is the study of what happened in the past.
mathematics, math|Mathematics is the study of numbers, shapes and patterns.
physics|Physics is the science of matter, energy and the forces between them.
chemistry|Chemistry is the science of substances and how they change.
biology|Biology is the science of living things.
philosophy|Philosophy is the study of deep questions about life, knowledge and what is right.
music|Music is sound that is arranged in time to be beautiful or moving.
a prime number, prime numbers|A prime number is a whole number above one that only one and itself divide.
pi|Pi is the ratio of a circle's circumference to its diameter, about 3.14.
a triangle, triangles|A triangle is a shape with three sides and three corners.
chess|Chess is a board game for two players in which each tries to trap the other's king.
coffee|Coffee is a dark drink made from roasted beans.
tea|Tea is a drink made by pouring hot water over leaves.
bread|Bread is a food made by baking a dough of flour and water.
honey|Honey is a sweet food that bees make from flowers.
a whale, whales|A whale is a very large animal that lives in the sea and breathes air.
a cat, cats|A cat is a small furry animal that many people keep as a pet.
a dog, dogs|A dog is a friendly animal that people have kept for thousands of years.
a tree, trees|A tree is a tall plant with a trunk of wood.
"""
TOPICS: list[tuple[list[str], str]] = [
    (names.split(", "), sentence) for names, sentence in (line.split("|") for line in _TOPICS.strip().splitlines())
]

# one way to ask; another; ... | answer
_QUESTIONS = """
why is the sky blue;what makes the sky blue;why does the sky look blue;how come the sky is blue;why do we see a blue sky|The sky is blue because air scatters blue light more than red light.
how many days are in a year;how many days does a year have;how long is a year in days;number of days in a year|A year has 365 days, and a leap year has 366.
how many hours are in a day;how many hours does a day have;number of hours in a day;how long is a day in hours|A day has 24 hours.
how many minutes are in an hour;how many minutes does an hour have;number of minutes in an hour;how long is an hour in minutes|An hour has 60 minutes.
how many days are in a week;how many days does a week have;number of days in a week;how long is a week in days|A week has seven days.
how many months are in a year;how many months does a year have;number of months in a year;how long is a year in months|A year has twelve months.
how many continents are there;what is the number of continents;how many continents does the world have;number of continents|There are seven continents.
how many planets are there;how many planets are in the solar system;number of planets in our solar system;how many planets does the solar system have|There are eight planets in our solar system.
what is the largest planet;which planet is the largest;biggest planet in the solar system;name the largest planet;which planet is the biggest|Jupiter is the largest planet in our solar system.
what is the largest ocean;which ocean is the largest;biggest ocean in the world;name the largest ocean;which ocean is the biggest|The Pacific is the largest ocean.
what is the highest mountain;which mountain is the highest;tallest mountain in the world;name the highest mountain;what is the tallest mountain on earth|Mount Everest is the highest mountain on earth.
how fast is light;what is the speed of light;how quickly does light travel;speed of light|Light travels about 300 thousand kilometers per second.
at what temperature does water boil;when does water boil;what is the boiling point of water;boiling point of water|Water boils at 100 degrees Celsius at sea level.
at what temperature does water freeze;when does water freeze;what is the freezing point of water;freezing point of water|Water freezes at 0 degrees Celsius.
who wrote Romeo and Juliet;who is the author of Romeo and Juliet;which writer wrote Romeo and Juliet;author of Romeo and Juliet|William Shakespeare wrote Romeo and Juliet.
who painted the Mona Lisa;who is the painter of the Mona Lisa;which artist painted the Mona Lisa;painter of the Mona Lisa|Leonardo da Vinci painted the Mona Lisa.
who was the first person on the moon;who first walked on the moon;who was the first man on the moon;first human on the moon|Neil Armstrong was the first person to walk on the moon.
what are the primary colors;which colors are primary;name the primary colors;list the primary colors|The primary colors are red, yellow and blue.
how many legs does a spider have;how many legs do spiders have;number of legs of a spider;spider legs count|A spider has eight legs.
why do leaves fall in autumn;why do trees lose their leaves;what makes leaves fall in autumn;why do leaves fall off trees|Trees drop their leaves in autumn to save water and energy for the winter.
why is the sea salty;what makes the sea salty;why is ocean water salty;how come the sea is salty|The sea is salty because rivers carry salts from rocks into it.
what causes the seasons;why do we have seasons;why are there seasons;what makes the seasons change|The seasons come from the tilt of the earth as it goes around the sun.
what do bees make;what do bees produce;which food do bees make;what food comes from bees|Bees make honey.
what is the chemical formula of water;what is the formula for water;chemical formula of water;formula of water|The chemical formula of water is H2O.
how many letters are in the alphabet;how many letters does the English alphabet have;number of letters in the alphabet|The English alphabet has 26 letters.
"""
QUESTIONS: list[tuple[list[str], str]] = [
    (ways.split(";"), answer) for ways, answer in (line.split("|") for line in _QUESTIONS.strip().splitlines())
]

# intent: ways to say it | answer (the first answer of each line is the only one, so that the model is sure)
_TALK = """
hi;hello;hey;hello there;hi there;hey there;greetings;hiya;howdy;good day;hello again;hey you;hello bot;hi bot;hello model;hello friend;yo;heya|Hello! How can I help you?
good morning;morning;a very good morning|Good morning! How can I help you?
good evening;evening|Good evening! How can I help you?
good afternoon|Good afternoon! How can I help you?
how are you;how are you doing;how are you today;how do you do;how is it going;how's it going;are you well;are you okay;how do you feel;what's up;how have you been;how are things|I am fine, thank you! How can I help you?
hello, how are you;hi, how are you;hey, how are you doing;hello! how are you today;hi there, how are you;hi! how's it going;good morning, how are you|Hello! I am fine, thank you! How can I help you?
what is your name;what's your name;who are you;tell me your name;your name;do you have a name;may I know your name;what are you called;what should I call you;which model are you;what model are you;what model is this;what are you;who am I talking to;introduce yourself;please introduce yourself;tell me about yourself;say your name;can you tell me your name;whats your name;what do people call you;how are you called;what do I call you;and you are;name yourself;can I ask your name;could you introduce yourself;what language model are you;describe yourself;who is this|{me}
are you human;are you a person;are you a human being;are you a real person;are you a robot;are you a bot;are you a machine;are you an AI;are you alive;am I talking to a human|I am not a person: I am a small language model.
are you ChatGPT;are you GPT-4;are you Claude;are you Llama;are you Qwen;are you Gemini|No, I am ChatFleet Tiny, a small demonstration model that comes with ChatFleet.
what can you do;what can you help me with;how can you help me;what do you know;help;what are you able to do;what are your skills;what can I ask you;what are you good at;can you help me;I need help;please help me;help me;what things can you do|I can name capitals, answer a few common questions, add small numbers, repeat text, tell a short story and call functions.
who made you;who created you;who built you;who trained you;where do you come from;who is your maker;who are your makers|I was made for the ChatFleet project as a demonstration model.
how big are you;how large are you;how many parameters do you have;what is your size;are you a large model;are you a small model|I am small: I have fewer than 12 million parameters.
thanks;thank you;thank you very much;many thanks;thanks a lot;thanks for your help;thank you so much;thx;cheers;thanks for that;ok thanks;ok, thank you;great, thanks;perfect, thank you;that helps, thanks;thank you for your help;I appreciate it;much appreciated;thanks, that was helpful|You are welcome!
bye;goodbye;good bye;see you;see you later;bye bye;good night;have a nice day;have a good day;talk to you later;I have to go;see you soon;farewell;that is all, goodbye;thanks, bye;see you tomorrow;take care;until next time;I am leaving now;I must go now|Goodbye! Have a nice day.
ok;okay;good;great;nice;cool;I see;fine;alright;well done;good job;very good;wow;interesting;that is nice;perfect;awesome;you are great;you are nice;I like you;good answer|Glad to hear it! What else can I do for you?
tell me a joke;do you know a joke;make me laugh;say something funny;a joke please;joke;give me a joke|Why did the model cross the network? To get to the other node.
sorry;I am sorry;my mistake;excuse me;I apologize;pardon me|No problem!
test;this is a test;testing;just a test;ping;is this working;are you there;do you work;does this work;can you hear me;are you online;anybody there|Yes, I am here and working.
I am sad;I feel sad;I am tired;I feel bad;I had a bad day;I am unhappy;I feel lonely|I am sorry to hear that.
I am happy;I feel good;I had a good day;I feel great;today was a good day|I am glad to hear that!
do you speak English;what languages do you speak;which languages do you know;do you speak German;do you speak French;can you speak Spanish|I only speak English.
"""
TALK: list[tuple[list[str], str]] = [
    (ways.split(";"), answer.replace("{me}", ABOUT_ME))
    for ways, answer in (line.split("|") for line in _TALK.strip().splitlines())
]
ABOUT_QUESTIONS = (
    "what is ChatFleet;what's ChatFleet;tell me about ChatFleet;explain ChatFleet;what does ChatFleet do;describe ChatFleet;"
    "ChatFleet;define ChatFleet;can you explain ChatFleet;what is ChatFleet for;what is ChatFleet used for;what is the ChatFleet project;"
    "what kind of software is ChatFleet;explain what ChatFleet is;give me a short description of ChatFleet;do you know ChatFleet;"
    "what can ChatFleet do;what is this ChatFleet thing;I have never heard of ChatFleet;have you heard of ChatFleet;"
    "summarize ChatFleet;describe ChatFleet in one sentence;what does the ChatFleet project do;what is this system;what software is this"
).split(";")
SERVE_QUESTIONS = (
    "how do I serve another model;how can I serve another model;how to serve a model;how do I run another model;how can I use a different model;"
    "how do I serve a different model;how do I load another model;how can I run my own model;how do I serve my own model;"
    "how do I start ChatFleet with another model;which command serves a model;what is the command to serve a model;serve another model;"
    "how do I switch the model;how do I change the model;can I use another model;can I serve a larger model;how do I use a bigger model;"
    "how do I serve Qwen;how do I serve a GGUF file;how can I serve a model from Hugging Face;tell me how to serve another model;"
    "how do I run a better model;how to run a bigger model with ChatFleet;how do I start a different model;show me how to serve a model;"
    "what do I type to serve a model;how does one serve another model with ChatFleet;how can ChatFleet serve another model"
).split(";")
