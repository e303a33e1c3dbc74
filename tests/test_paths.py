"""The closed-form linear path and the global path: values against brute force, storage, and what training sees."""

import pytest
import torch

from resdm.layers.paths import PENALTIES, GlobalPath, LinearPath

N, SHAPE = 24, (4, 5, 3)


@pytest.fixture
def cohort():
    """Linear images: PET = sex and age of the sentence + a map of the MRI; the second tracer of some is missing."""
    draw = torch.Generator().manual_seed(3)
    mri = torch.rand((N, *SHAPE), generator=draw)
    mri[:, 0] = 0  # outside the brain
    sentences = torch.randn((1, N, 6), generator=draw)
    sentences = torch.cat([sentences, sentences * torch.tensor([0.0, 1, 1, 1, 1, 1])])  # the second leaves a part out
    weights = torch.randn((2, mri[0].numel(), mri[0].numel()), generator=draw) / 40
    pet = torch.einsum("nv, cvw -> ncw", mri.flatten(1), weights).unflatten(2, SHAPE) + 0.5
    pet = pet + 0.1 * sentences[0, :, :1, None, None, None] + 0.01 * torch.randn(pet.shape, generator=draw)
    pet[:, :, 0] = 0
    present = torch.ones((N, 2), dtype=torch.bool)
    present[:5, 1] = False
    pet[:5, 1] = 0
    people = [f"sub-{i // 2}" if i < 8 else f"sub-{i}" for i in range(N)]  # four people with two sessions
    return mri, pet, present, sentences, (0.9, 0.1), people


@pytest.fixture
def fitted(cohort):
    return fit(*cohort)


def standardised(rows):
    return (rows - rows.mean(0)) / rows.std(0)


def fit(*cohort):
    """A fitted path whose sentence features are their content."""
    path, rows = LinearPath(SHAPE, 6), torch.randn((50, 6), generator=torch.Generator().manual_seed(5))
    path.fit_text(rows, standardised(rows))
    path.fit(*cohort)
    return path


def test_estimates_of_training_sessions_are_those_of_a_fit_without_the_person(cohort):
    mri, pet, present, sentences, _, people = cohort
    fitted = fit(mri, pet, present, sentences[:1], (1.0,), people)
    for channel in range(2):
        has = [i for i in range(N) if present[i, channel]]
        d = fitted.design(sentences[0]).double()[has]
        cells = torch.nn.functional.adaptive_avg_pool3d(mri, (8, 8, 8)).flatten(1).double()
        x, y = standardised(cells).nan_to_num(0)[has], pet[has, channel][:, fitted.voxels].double()
        rest = x - d @ torch.linalg.pinv(d) @ x
        scale = (rest @ rest.T).trace() / len(has)

        def without(penalty, d=d, x=x, y=y, has=has, scale=scale):
            out = torch.empty_like(y)
            for row, i in enumerate(has):  # the joint fit of the others: no penalty on the sentence
                others = [k for k, j in enumerate(has) if people[j] != people[i]]
                hat = d[others] @ torch.linalg.pinv(d[others])
                lean = x[others] - hat @ x[others]
                gram = lean @ lean.T + penalty * scale * torch.eye(len(others)).double()
                slope = lean.T @ torch.linalg.solve(gram, y[others] - hat @ y[others])
                level = torch.linalg.pinv(d[others]) @ (y[others] - x[others] @ slope)
                out[row] = d[row] @ level + x[row] @ slope
            return out

        best = min((without(p) for p in PENALTIES), key=lambda guess: float((guess - y).square().mean()))
        found = fitted(mri[has, None], sentences[0, has], torch.tensor(has))[:, channel][:, fitted.voxels]
        torch.testing.assert_close(found, best.float(), atol=1e-5, rtol=1e-4)


def test_the_map_finds_what_is_linear_and_outside_the_brain_nothing(cohort, fitted):
    mri, pet, _, sentences, *_ = cohort
    estimate = fitted(mri[:, None], sentences[0])
    assert estimate[:, :, 0].abs().max() == 0
    assert (estimate[:, 0] - pet[:, 0]).square().mean() < 0.2 * pet[:, 0].var(0).mean()


def test_maps_are_in_standard_deviations(cohort, fitted):
    mri, _, _, sentences, *_ = cohort
    maps = fitted.maps(mri[:, None], fitted(mri[:, None], sentences[0]))
    assert maps.shape == (N, 2, 2, *SHAPE)
    inside = maps[:, 0, 0][:, fitted.voxels]
    torch.testing.assert_close(inside.std(0), torch.ones(inside.shape[1]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(inside.mean(0), torch.zeros(inside.shape[1]), atol=1e-4, rtol=1e-4)


def test_content_is_recovered_from_features_and_left_out_where_training_prompts_do_not_vary():
    draw = torch.Generator().manual_seed(1)
    content, mixing = torch.randn((200, 3), generator=draw), torch.randn((3, 8), generator=draw)
    path, mri = LinearPath(SHAPE, 8), torch.rand((N, *SHAPE), generator=draw)
    path.fit_text(content @ mixing + 5, standardised(content))
    new = torch.randn((N, 3), generator=draw)
    expected = (new - content.mean(0)) / content.std(0)
    torch.testing.assert_close(path.design(new @ mixing + 5)[:, 1:], expected, atol=1e-3, rtol=1e-3)
    new[:, 1] = 2.0  # of one sex, or with an age in every prompt
    pet, present = mri[:, None].repeat(1, 2, 1, 1, 1), torch.ones((N, 2), dtype=torch.bool)
    path.fit(mri, pet, present, (new @ mixing + 5)[None], (1.0,), list(map(str, range(N))))
    before = path(mri[:, None], new @ mixing + 5)
    new[:, 1] = -2.0
    torch.testing.assert_close(path(mri[:, None], new @ mixing + 5), before, atol=1e-3, rtol=1e-3)


def test_too_few_training_people_are_refused(cohort):
    mri, pet, present, sentences, chances, _ = cohort
    few, message = slice(8, 11), r"^more than 3 training people with a PET are needed, or network\.linear_path"
    with pytest.raises(ValueError, match=message):
        fit(mri[few], pet[few], present[few], sentences[:, few], chances, list("abc"))


def test_content_that_one_person_alone_has_gives_no_fit_without_that_person(cohort):
    """Two sessions of the only woman: without her nothing is known of her sex."""
    mri, pet, present, sentences, _, people = cohort
    sentences = sentences[:1].clone()
    sentences[..., 0] = torch.tensor([3.0, 3.0, *[-1.0] * (N - 2)])
    with pytest.raises(ValueError, match=r"^more than 20 training people with a PET are needed"):
        fit(mri, pet, present, sentences, (1.0,), people)


def test_a_tracer_that_nobody_has_is_0(cohort):
    mri, pet, present, sentences, chances, people = cohort
    present[:, 1], pet[:, 1] = False, 0
    fitted = fit(mri, pet, present, sentences, chances, people)
    for rows in (None, torch.arange(N)):
        estimate = fitted(mri[:, None], sentences[0], rows)
        assert estimate[:, 1].abs().max() == 0
        assert (estimate[:, 0] - pet[:, 0]).square().mean() < 0.5 * pet[:, 0].var(0).mean()
        assert fitted.maps(mri[:, None], estimate).isfinite().all()


def test_where_no_cell_varies_the_sentence_alone_is_fitted(cohort):
    mri, pet, present, sentences, _, people = cohort
    present[:] = True
    path = fit(mri[:1].expand_as(mri).clone(), pet, present, sentences[:1], (1.0,), people)
    design = path.design(sentences[0]).double()
    expected = (design @ torch.linalg.pinv(design) @ pet[:, 0].flatten(1).double()).unflatten(1, SHAPE)
    torch.testing.assert_close(path(mri[:, None], sentences[0])[:, 0], expected.float(), atol=1e-4, rtol=1e-4)


def test_before_a_fit_the_estimate_is_0():
    assert LinearPath(SHAPE, 6)(torch.rand(2, 1, *SHAPE), torch.randn(2, 6)).equal(torch.zeros(2, 2, *SHAPE))


def test_a_stored_path_gives_the_same_values(cohort, fitted):
    mri, _, _, sentences, *_ = cohort
    again = LinearPath(SHAPE, 6)
    again.resize({name: tuple(value.shape) for name, value in fitted.state_dict().items()})
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(mri[:, None], sentences[0]), fitted(mri[:, None], sentences[0]))


def test_the_global_path_starts_near_zero_and_takes_deviations_alone():
    path, draw = GlobalPath(16), torch.Generator().manual_seed(0)
    mri = torch.rand((6, 1, 16, 16, 16), generator=draw)
    mri[:, :, :8] = 0.25  # the same in everyone
    path.fit(mri)
    assert path(mri).abs().max() < 0.05
    torch.nn.init.normal_(path.layers[-1].weight)
    before = path(mri)
    mri[:, :, :8] = 0.75
    assert torch.equal(path(mri), before)  # cells that are constant over training people have no effect
    mri[0, :, 8:] += 0.1
    assert not torch.equal(path(mri)[0], before[0])
    assert torch.equal(path(mri)[1:], before[1:])
