import pytest

from synth.quality.language import drifted, identify

TEXTS = {
    "en": "The lighthouse at the northern cape was built in 1871 from grey granite and has guided ships past the reef ever since. Its keeper climbed two hundred and twelve steps every evening.",
    "de": "Der Leuchtturm am Nordkap wurde 1871 aus grauem Granit gebaut und leitet seither Schiffe am Riff vorbei. Jeden Abend stieg der Wärter zweihundertzwölf Stufen hinauf, um die Lampe anzuzünden.",
    "fr": "Le phare du cap nord fut construit en 1871 en granit gris et guide depuis lors les navires le long du récif. Chaque soir, son gardien montait deux cent douze marches pour allumer la lampe.",
    "ru": "Маяк на северном мысе был построен в 1871 году из серого гранита и с тех пор проводит корабли мимо рифа. Каждый вечер смотритель поднимался по двумстам двенадцати ступеням.",
    "zh": "北角的灯塔于一八七一年用灰色花岗岩建成，从那以后一直引导船只绕过暗礁。每天傍晚，看守人都要爬上二百一十二级台阶去点灯。灯塔如今已经自动化，但游客仍然可以在夏天登上塔顶，眺望大海、小岛和远处的渔船。天气晴朗的夜晚，二十海里以外的渔民也能看见它的光。许多老人还记得当年看守人讲过的故事，他们说那盏灯从来没有熄灭过。",
}  # fmt: skip


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_told_in_a_few_sentences(code):
    assert identify(TEXTS[code], 100) == code


def test_too_short_a_text_has_no_language():
    assert identify("Der Leuchtturm.", 100) is None
    assert identify("1871 12 3.5 --- !!! " * 50, 100) is None
    assert identify("", 1) is None


def test_an_unsure_language_is_not_told():
    assert identify("qzx vwk jpf " * 20, 100) != "en"
    assert identify("Kubernetes Prometheus Grafana Jenkins Terraform Ansible", 40) is None


def test_drift_needs_two_known_languages_that_are_not_next_of_kin():
    assert drifted("de", "en") is True
    assert drifted("en", "en") is False
    assert drifted("nb", "da") is False
    assert drifted(None, "en") is None
    assert drifted("en", None) is None
