"""Token estimates against the truth (o200k_base): never more than 10 % under, and not so far over
that prompts stay half empty.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import sys
import uuid

import pytest

from beam_llm.prompting.tokens import (
    SampledTokens,
    encoder_of,
    estimate_tokens,
    exact_tokens,
    rough_tokens,
    utf8_bytes,
)

_DICE = random.Random(20261124)


def _uuids(count: int) -> str:
    return "\n".join(str(uuid.UUID(int=_DICE.getrandbits(128), version=4)) for _ in range(count))


def _rows(count: int) -> str:
    rows = [
        {
            "id": 1000 + i,
            "sku": f"B0{_DICE.randrange(10**8):08d}",
            "price": round(_DICE.uniform(1, 900), 2),
            "ok": i % 2 == 0,
            "tags": ["new", "eu"],
        }
        for i in range(count)
    ]
    return json.dumps(rows)


ENGLISH = (
    "I bought this kettle in March because the old one leaked, and for the first two weeks it was wonderful: quiet, quick, and the handle "
    "stays cool. Then the lid stopped closing properly. I wrote to customer service three times before anybody answered, and when they did "
    "they asked for photographs I had already sent. The replacement arrived within a couple of days, though, so I can't complain too much. "
    "Would I buy it again? Probably, if it were on sale. My neighbour has the same model and hasn't had a single problem with hers."
)
SHOUTING = (
    "WORST PURCHASE EVER!!! DO NOT BUY!!! The screen went BLACK after 2 days and NOBODY at the store would help me... "
    "I asked for a REFUND on 03/14/2024, again on 3/21, & again on 4/2 -- still nothing :-( :-( Total cost: $1,249.99 (incl. tax). "
    'LOL @ their "24/7 support". 0/10, would NOT recommend. AVOID!!! Sent from my iPhone'
)
CODE = '''
@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long to wait."""

    max_retries: int = 3
    base_seconds: float = 0.5
    cap_seconds: float = 30.0

    def delay(self, attempt: int, *, jitter: Callable[[], float] = random.random) -> float:
        if attempt < 0:
            raise ValueError(f"attempt must be >= 0, not {attempt!r}")
        raw = min(self.cap_seconds, self.base_seconds * 2**attempt)
        return raw * (1.0 - 0.25 * jitter())

for (int i = 0; i < n; ++i) { if (buf[i] != '\\0' && isalpha((unsigned char)buf[i])) { out[j++] = toupper(buf[i]); } }
const handler = async (req, res) => { const {id, limit = 20} = req.query; return res.json(await db.findMany({where: {id}, take: +limit})); };
'''
GERMAN = (
    "Die Bedienungsanleitung ist leider unverständlich übersetzt, weshalb die Erstinbetriebnahme der Waschmaschine fast drei Stunden gedauert "
    "hat. Besonders ärgerlich: Die Geschwindigkeitsregelung des Schleudergangs lässt sich nicht dauerhaft speichern. Der Kundendienst war zwar "
    "freundlich, konnte mir aber auch nur die Rücksendung zum Verkäufer empfehlen. Für diesen Preis hätte ich größere Sorgfalt bei der "
    "Qualitätssicherung erwartet; die Türdichtung schließt nicht gleichmäßig, und außerdem fehlten zwei Befestigungsschrauben."
)
GERMAN_WITHOUT_UMLAUTS = (
    "Rechtsschutzversicherungsgesellschaften und Donaudampfschifffahrtsgesellschaften unterliegen der Aufsichtspflicht. Die Verbraucherzentrale "
    "warnt deshalb vor Haustuergeschaeften, bei denen Unterschriftenlisten ohne Widerrufsbelehrung vorgelegt werden. Bundesverfassungsgericht, "
    "Arbeitsunfaehigkeitsbescheinigung, Lebensmittelunvertraeglichkeit und Kraftfahrzeughaftpflichtversicherung sind Woerter des Alltags."
)
FRENCH = (
    "J'ai commandé cette cafetière il y a trois semaines et, malgré plusieurs réclamations, je ne l'ai toujours pas reçue. Le service après-vente "
    "m'assure que le colis a été expédié, mais le numéro de suivi n'est pas reconnu par le transporteur. C'était censé être un cadeau "
    "d'anniversaire pour ma mère ; j'ai dû acheter autre chose en catastrophe. Très déçue, d'autant que le site avait d'excellentes critiques."
)
POLISH = (
    "Zamówiłem ten odkurzacz dwa tygodnie temu i niestety przesyłka przyszła uszkodzona. Sprzedawca początkowo twierdził, że to wina kuriera, "
    "później jednak zgodził się wymienić urządzenie na nowe. Samo sprzątanie przebiega świetnie, chociaż zbiornik mógłby być większy, a przewód "
    "dłuższy. Najbardziej denerwuje mnie przenikliwy dźwięk silnika oraz brak końcówki do szczelin."
)
TURKISH = (
    "Ürünü geçen hafta sipariş ettim, kargo oldukça hızlıydı fakat kutunun köşesi ezilmişti. İçindeki bardaklardan ikisi kırık çıktı; müşteri "
    "hizmetlerine yazdığımda fotoğraf istediler ve ertesi gün yenilerini gönderdiler. Kalitesinden memnunum, yalnız renkleri internette "
    "göründüğünden biraz daha soluk. Arkadaşlarıma gönül rahatlığıyla tavsiye edebilirim."
)
VIETNAMESE = (
    "Tôi đã mua chiếc nồi cơm điện này được hai tháng rồi và nhìn chung khá hài lòng. Cơm chín đều, không bị cháy dưới đáy, lòng nồi chống dính tốt "
    "và dễ lau chùi. Tuy nhiên dây điện hơi ngắn, phải dùng thêm ổ cắm nối dài. Nhân viên giao hàng thân thiện, đóng gói cẩn thận, giá cả hợp lý so "
    "với những cửa hàng khác trong thành phố."
)
CHINESE = (
    "这款手机的屏幕非常清晰，电池续航也比我想象的要好，充满一次电基本上可以用两天。不过相机在光线不足的情况下表现一般，拍出来的照片噪点比较多。客服的态度很好，"
    "我咨询了几个关于保修的问题，都得到了耐心的解答。物流速度也很快，第二天就送到了。唯一让我不太满意的是包装盒有一点压坏了，希望商家以后能够改进。总体来说，"
    "这个价位能买到这样的产品已经非常划算，推荐给预算有限的朋友。另外，系统升级之后偶尔会出现卡顿，重启之后就恢复正常了。"
)
TRADITIONAL_CHINESE = (
    "這臺冷氣機安裝完畢之後運轉聲音相當安靜，遙控器的介面設計也很直覺，長輩稍微學習一下就會使用。可惜師傅遲到了將近兩個鐘頭，而且沒有事先打電話通知，"
    "讓我整個下午都在家裡乾等。售後服務專線撥打了好幾次才接通，處理態度倒是誠懇，最後還退還部分運費。整體而言，性價比尚可，假如能夠縮短預約時間，"
    "我會願意給予更高的評價。濾網拆卸清洗方便，說明書印刷清楚。"
)
JAPANESE = (
    "先月この加湿器を購入しましたが、思っていたよりも音が静かで、寝室でも気になりません。タンクの容量が大きいので、一晩中つけたままでも水切れの心配がありません。"
    "ただし、お手入れはやや面倒で、フィルターの掃除を毎週しなければならないのが残念です。カスタマーサポートに問い合わせたところ、丁寧に対応していただき、"
    "交換用の部品もすぐに送ってくれました。デザインもシンプルで部屋の雰囲気に合っています。コストパフォーマンスを考えれば十分満足できる商品だと思います。"
)
KOREAN = (
    "지난주에 주문한 무선 이어폰이 생각보다 빨리 도착해서 정말 기분이 좋았습니다. 음질은 가격에 비해 훌륭한 편이고, 특히 저음이 풍부하게 들립니다. 다만 오래 착용하면 "
    "귀가 조금 아프고, 통화할 때 상대방이 제 목소리가 잘 들리지 않는다고 합니다. 고객센터에 문의했더니 친절하게 설명해 주었지만 해결되지는 않았습니다. 그래도 디자인이 "
    "예쁘고 배터리가 오래가서 전체적으로는 만족하며 사용하고 있습니다."
)
ARABIC = (
    "اشتريت هذه الغسالة قبل شهرين تقريبا، وكانت تجربتي معها جيدة في البداية. الصوت منخفض أثناء التشغيل، وبرامج الغسيل متنوعة وتناسب جميع أنواع الأقمشة. "
    "لكن بعد فترة قصيرة ظهرت مشكلة في تصريف المياه، فاتصلت بخدمة العملاء وانتظرت أكثر من نصف ساعة حتى يرد أحد الموظفين. أرسلوا الفني بعد ثلاثة أيام وقام "
    "بإصلاح العطل مجانا لأن الجهاز ما زال تحت الضمان. بشكل عام المنتج ممتاز مقارنة بسعره، ولكن خدمة ما بعد البيع تحتاج إلى تحسين كبير."
)
HEBREW = (
    "קניתי את המכשיר הזה לפני כחודש ואני מרוצה מאוד מהאיכות שלו. המשלוח הגיע מהר יותר מהצפוי והאריזה הייתה שלמה. לעומת זאת, ספר ההוראות כתוב רק באנגלית, "
    "ולכן לקח לי זמן רב להבין כיצד מפעילים את הטיימר. שירות הלקוחות ענה בסבלנות לכל השאלות שלי, ואפילו שלחו לי סרטון הדרכה קצר."
)
RUSSIAN = (
    "Заказывал этот пылесос полгода назад, и до недавнего времени всё было замечательно: мощность хорошая, мешок вместительный, шнур длинный. Однако на прошлой неделе "
    "двигатель начал издавать посторонние звуки, а потом и вовсе перестал включаться. В сервисном центре сказали, что ремонт обойдётся почти в половину стоимости нового "
    "устройства, потому что гарантия якобы не распространяется на подобные неисправности. Очень разочарован отношением производителя к покупателям; больше не куплю."
)
GREEK = (
    "Αγόρασα αυτό το σίδερο πριν από δύο μήνες και είμαι αρκετά ευχαριστημένη. Ζεσταίνεται γρήγορα, γλιστράει εύκολα πάνω στα υφάσματα και δεν αφήνει σημάδια. Το μόνο "
    "αρνητικό είναι ότι το καλώδιο είναι λίγο κοντό και η δεξαμενή νερού αδειάζει γρήγορα. Η εξυπηρέτηση πελατών απάντησε αμέσως στα μηνύματά μου."
)
HINDI = (
    "मैंने यह मिक्सर पिछले महीने ऑनलाइन खरीदा था और अब तक का अनुभव काफी अच्छा रहा है। मोटर की आवाज़ थोड़ी तेज़ है लेकिन मसाले बहुत बारीक पिसते हैं। डिलीवरी समय पर हुई और "
    "पैकिंग भी मजबूत थी। ग्राहक सेवा से बात करने में कुछ कठिनाई हुई, फिर भी उन्होंने मेरी समस्या का समाधान कर दिया। कीमत के हिसाब से यह एक बढ़िया उत्पाद है।"
)
THAI = (
    "ซื้อเครื่องฟอกอากาศรุ่นนี้มาใช้ได้ประมาณสองเดือนแล้ว รู้สึกว่าอากาศในห้องสะอาดขึ้นมาก เสียงเงียบ ไม่รบกวนเวลานอน แต่แผ่นกรองมีราคาค่อนข้างแพงและหาซื้อยาก "
    "พนักงานขายให้คำแนะนำดี จัดส่งรวดเร็ว กล่องไม่บุบ โดยรวมถือว่าคุ้มค่ากับราคาที่จ่ายไป"
)
URLS = "\n".join(
    [
        "https://www.example.com/products/kitchen/B08N5WRWNW?ref_=pd_gw_ci_mcx_mr_hp_d&th=1&psc=1&utm_source=newsletter&utm_campaign=2024-spring",
        "http://cdn3.images.example.org/thumbs/800x600/2023/11/07/IMG_20231107_184522~2.jpg?w=800&h=600&fit=crop&auto=format%2Ccompress&q=75",
        "https://docs.example.dev/en/stable/reference/api/v2/users/{user_id}/settings.html#notification-preferences",
        "s3://my-data-lake-prod/raw/events/year=2024/month=05/day=17/part-00042-9f3c1e.c000.snappy.parquet",
        "https://maps.example.com/@48.8583701,2.2922926,17z/data=!3m1!4b1!4m6!3m5!1s0x47e66e2964e34e2d:0x8ddca9ee380ef7e0!8m2",
    ]
)
EMOJI = (
    "Love it!!! 😍😍😍 Best. Gift. Ever. 🎁🎉 My kids are so happy 👨‍👩‍👧‍👦❤️ 10/10 👍🏽👍🏽 would buy again 🛒💯 shipping was fast 🚚💨 but the box was 📦➡️🗑️ lol 😂🤣 "
    "⭐⭐⭐⭐⭐ thank you 🙏🙏 🇩🇪🇫🇷🇯🇵 🤷‍♀️ 🧑🏿‍🚀 ☀️🌈🦄🫶🥹 #blessed ✨✨"
)
TABLE = "\n".join(
    f"| {i:>4} | {name:<12} | {i * 37.5:>10.2f} |   ok   |"
    for i, name in enumerate(["north", "south-east", "Übersee", "west"] * 5)
)
LOGS = "\n".join(
    f"2024-05-{day:02d}T14:{day:02d}:07.{day * 13:03d}Z WARN  [worker-{day}] com.acme.billing.InvoiceService - retry #{day} failed: java.net.SocketTimeoutException: Read timed out (host=10.0.{day}.17:8443)"
    for day in range(1, 8)
)

SAMPLES = {
    "english": ENGLISH,
    "english, shouting": SHOUTING,
    "code": CODE,
    "german": GERMAN,
    "german, long words": GERMAN_WITHOUT_UMLAUTS,
    "french": FRENCH,
    "polish": POLISH,
    "turkish": TURKISH,
    "vietnamese": VIETNAMESE,
    "chinese": CHINESE,
    "chinese, traditional": TRADITIONAL_CHINESE,
    "japanese": JAPANESE,
    "korean": KOREAN,
    "arabic": ARABIC,
    "hebrew": HEBREW,
    "russian": RUSSIAN,
    "greek": GREEK,
    "hindi": HINDI,
    "thai": THAI,
    "json": _rows(12),
    "json, indented": json.dumps(json.loads(_rows(6)), indent=2),
    "json, escaped": json.dumps({"text": RUSSIAN[:120], "more": JAPANESE[:60]}),
    "urls": URLS,
    "uuids": _uuids(12),
    "hex": hashlib.sha512(b"a").hexdigest()
    + hashlib.sha512(b"b").hexdigest()
    + hashlib.sha512(b"c").hexdigest(),
    "base64": base64.b64encode(_DICE.randbytes(450)).decode(),
    "digits": "".join(_DICE.choice(string.digits) for _ in range(400)),
    "numbers": " ".join(str(_DICE.randrange(10**7)) for _ in range(60)),
    "decimals, csv": "\n".join(
        ",".join(f"{_DICE.uniform(-180, 180):.6f}" for _ in range(5)) for _ in range(12)
    ),
    "emoji": EMOJI,
    "table": TABLE,
    "logs": LOGS,
    "html": "<div class=\"card\"><h2>Über uns</h2><p>We&nbsp;care &amp; share.</p><ul><li><a href='/a?b=1&amp;c=2'>x</a></li></ul></div>\n"
    * 5,
}


@pytest.fixture(scope="module")
def truth():
    bpe_openai = pytest.importorskip(
        "bpe_openai", reason="exact counts need the extra: pip install 'beam-llm[tokens]'"
    )
    encoding = bpe_openai.get_encoding("o200k_base")
    return lambda text: len(encoding.encode_ordinary(text))


@pytest.mark.parametrize("name", SAMPLES)
def test_an_estimate_is_at_most_a_tenth_below_the_truth_and_never_twice_it(name, truth):
    text = SAMPLES[name]
    ratio = estimate_tokens(text) / truth(text)
    assert 0.9 <= ratio <= 2.0, f"{estimate_tokens(text)} estimated, {truth(text)} true"


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_packed_together_are_not_under_counted_either(name, truth):
    text = "\n".join(
        f'Input {i}: "{part}"' for i, part in enumerate([SAMPLES[name], ENGLISH, SAMPLES[name]])
    )
    assert estimate_tokens(text) >= 0.9 * truth(text)


@pytest.mark.parametrize("name", SAMPLES)
def test_short_pieces_add_up_to_no_less_than_nine_tenths(name, truth):
    pieces = [SAMPLES[name][i : i + 60] for i in range(0, len(SAMPLES[name]), 60)]
    assert sum(map(estimate_tokens, pieces)) >= 0.9 * sum(map(truth, pieces))


@pytest.mark.parametrize("name", SAMPLES)
def test_the_bound_is_never_exceeded_by_the_truth_nor_by_the_estimate(name, truth):
    text = SAMPLES[name]
    assert utf8_bytes(text) >= truth(text)
    assert utf8_bytes(text) >= estimate_tokens(text)


def test_english_is_over_counted_by_less_than_a_third_so_that_prompts_fill_up(truth):
    assert estimate_tokens(ENGLISH) <= 1.33 * truth(ENGLISH)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("\ud800", 3)],
    ids=["empty", "one letter", "lone surrogate"],
)
def test_odd_texts_have_a_count_too(text, tokens):
    assert estimate_tokens(text) <= tokens
    assert utf8_bytes(text) == tokens


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        ("gpt-4o-mini", "größere", 3),
        ("gpt-6-luna", "größere", 3),
        ("gpt-4", "größere", 4),
        ("gpt-4.1", "größere", 3),
    ],
)
def test_exact_counts_are_made_with_the_models_own_vocabulary(model, text, tokens):
    pytest.importorskip(
        "bpe_openai", reason="exact counts need the extra: pip install 'beam-llm[tokens]'"
    )
    assert exact_tokens(text, model) == tokens


def test_a_text_that_is_too_long_to_be_counted_has_no_exact_count():
    assert exact_tokens("x" * 3_000_000, "gpt-4.1") is None


def test_without_the_extra_there_is_no_exact_count(monkeypatch):
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    encoder_of.cache_clear()
    try:
        assert exact_tokens("any text", "gpt-4.1") is None
    finally:
        encoder_of.cache_clear()  # else: no later test has an exact count


def texts_of(kind: str) -> list[str]:
    """Two thousand texts: of one language after the other, of all in turn, or in no order."""
    samples = list(SAMPLES.values())
    if kind == "sorted":
        return [sample[:200] for sample in samples for _ in range(2000 // len(samples))]
    if kind == "in turns of eight":
        return [(CHINESE if n % 8 else ENGLISH)[:200] for n in range(2000)]
    return [text[_DICE.randrange(50) :][:200] for text in _DICE.choices(samples, k=2000)]


@pytest.mark.parametrize("kind", ["sorted", "in turns of eight", "mixed"])
def test_a_sample_is_enough_for_the_sum(kind):
    texts = texts_of(kind)
    count = SampledTokens(1000)
    sampled, estimated = sum(map(count, texts)), sum(map(estimate_tokens, texts))
    assert 0.9 < sampled / estimated < 1.15
    first = [count(text) for text in texts]
    count.restart()
    again = [count(text) for text in texts]
    assert again != first, "the rate was not forgotten"
    count.restart()
    assert [count(text) for text in texts] == again, (
        "equal texts in equal order are counted equally"
    )


def test_few_texts_and_long_texts_are_all_estimated():
    count = SampledTokens(100)
    short, long = ["a b c " * n for n in range(1, 16)] * 4, ["word " * n for n in range(30, 60)]
    assert [count(text) for text in [*short, *long]] == [
        estimate_tokens(text) for text in [*short, *long]
    ]


@pytest.mark.parametrize("up_to", [0, 10, 100])
def test_a_rough_count_is_the_bound_up_to_a_size(up_to):
    for text in ("größer", "größer " * 10, "x" * 100, ""):
        size = len(text.encode())
        assert rough_tokens(text, up_to) == (size if size <= up_to else estimate_tokens(text))
