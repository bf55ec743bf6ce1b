"""The result as text."""

from bitsmith.evaluation import Evaluation
from bitsmith.evaluation.divergence import Divergence
from bitsmith.evaluation.moments import Estimate


def result(divergence: Divergence | None) -> Evaluation:
    return Evaluation(
        model="small-Q4_0",
        against="small" if divergence else None,
        text="story.txt",
        text_sha256="0" * 64,
        context=512,
        windows=1234,
        tokens=314_670,
        loss=Estimate(4.0, 0.01),
        perplexity=Estimate(54.59817, 0.54598),
        divergence=divergence,
    )


def test_lines_alone() -> None:
    assert result(None).lines() == [
        "small-Q4_0",
        "text             story.txt: 1,234 windows of 512 tokens, the second half of each scored, 314,670 tokens",
        "perplexity       54.5982 ± 0.5460",
    ]


def test_lines_against_a_reference() -> None:
    lost = Divergence(
        kld=Estimate(0.0123456, 0.0001234),
        kld_median=0.01,
        kld_99=0.02,
        kld_999=0.03,
        kld_max=0.04,
        kld_min=0.0,
        top1=Estimate(0.91234, 0.001),
        delta_p=Estimate(-0.0012, 0.0003),
        delta_p_rms=Estimate(0.023, 0.0004),
        reference_perplexity=Estimate(50.0, 0.5),
        log_ratio=Estimate(0.088, 0.001),
        ratio=Estimate(1.091963, 0.001092),
        vocab=4096,
    )
    lines = result(lost).lines()
    assert lines[0] == "small-Q4_0 against small"
    assert lines[3:] == [
        "  of the original 50.0000 ± 0.5000",
        "  ratio          1.09196 ± 0.00109",
        "mean KLD         0.012346 ± 0.000123",
        "  median 0.010000, 99 % 0.020000, 99.9 % 0.030000, max 0.040000",
        "top-1 agreement  91.234 ± 0.100 %",
        "RMS delta p      2.300 ± 0.040 %",
        "mean delta p     -0.120 ± 0.030 %",
    ]
