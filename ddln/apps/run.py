"""The page of a run folder: its axes and one of its lanes, with those of other runs."""

import marimo

app = marimo.App(width="full", app_title="ddln explore")


@app.cell
def _():
    from pathlib import Path

    import marimo as mo

    from ddln import apps, browser, views
    from ddln.markup import element, join
    from ddln.store import RunFolder

    return Path, RunFolder, apps, browser, element, join, mo, views


@app.cell
def _(Path, apps, browser, mo):
    _path = Path(apps.subject()[0]).absolute()
    root = _path.parent
    run = mo.ui.dropdown(
        sorted({*browser.runs(root), _path.name}), _path.name, label="run", full_width=True
    )
    get_kept, set_kept = mo.state({})
    return get_kept, root, run, set_kept


@app.cell
def _(RunFolder, browser, root, run):
    try:
        dataset, unread = browser.read(RunFolder(root / run.value)), ""
        axes = browser.axes(dataset)
    except ValueError as _error:
        dataset, unread, axes = None, str(_error), []
    return axes, dataset, unread


@app.cell
def _(axes, browser, dataset, mo):
    places = mo.ui.dictionary(
        {
            axis: mo.ui.slider(
                steps=list(range(dataset.sizes[axis])), debounce=True, full_width=True, label=axis
            )
            for axis in axes
        }
    )
    along = mo.ui.dropdown(axes, axes[0] if axes else None, label="along", full_width=True)
    over = mo.ui.dropdown(
        ["–", *axes], axes[1] if len(axes) > 1 else "–", label="a curve for each", full_width=True
    )
    _known = browser.quantities(dataset) if dataset is not None else []
    quantity = mo.ui.dropdown(_known, _known[0] if _known else None, label="drawn", full_width=True)
    return along, over, places, quantity


@app.cell
def _(browser, dataset, places, unread, views):
    lane_name, view, fault = "", None, unread
    if dataset is not None:
        lane_name = browser.name_of(dataset, places.value)
        try:
            view = views.view(browser.pick(dataset, places.value))
        except ValueError as _error:
            fault = str(_error)
    return fault, lane_name, view


@app.cell
def _(mo, view):
    coordinate = mo.ui.dropdown(
        {str(k + 1): k for k in range(view.width if view else 1)}, "1", label="coordinate k"
    )
    return (coordinate,)


@app.cell
def _(lane_name, mo, run, set_kept, view):
    def _keep(_):
        name = f"{run.value}: {lane_name}"
        set_kept(lambda kept: dict([*kept.items(), (name, view)][-3:]))

    keep = mo.ui.button(label="Keep", on_click=_keep, disabled=view is None)
    forget = mo.ui.button(label="Forget", on_click=lambda _: set_kept({}))
    return forget, keep


@app.cell
def _(along, element, forget, keep, lane_name, mo, over, places, quantity, run):
    _lane = [mo.Html(element("b", "The lane")), *places.elements.values()]
    _sweep = [mo.Html(element("b", "The sweep")), quantity, along, over]
    panel = mo.vstack(
        [
            run,
            *(_sweep if places.elements else []),
            *(_lane if places.elements else []),
            mo.Html(element("code", lane_name, {"id": "lane"})),
            mo.hstack([keep, forget], justify="start"),
        ]
    )
    return (panel,)


@app.cell
def _(
    along,
    browser,
    coordinate,
    dataset,
    element,
    fault,
    get_kept,
    join,
    mo,
    over,
    panel,
    places,
    quantity,
    view,
    views,
):
    _told = [mo.callout(mo.plain_text(fault), kind="danger")] if fault else []
    _sweep = {}
    if places.elements:
        _over = None if over.value in ("–", along.value) else over.value
        _sweep = {
            "across": browser.across(dataset, quantity.value, along.value, _over, places.value),
            "side": browser.side_by_side(
                dataset, over.value if _over else along.value, places.value
            ),
        }
        _told.append(mo.Html(views.grid(_sweep)))
    if view is not None:
        _told += [coordinate, mo.Html(views.overview(view, coordinate.value, get_kept()))]
    if get_kept():
        _told.append(mo.Html(element("div", browser.compare(get_kept()), {"id": "kept"})))
    mo.hstack([panel, mo.vstack(_told, gap=1)], widths=[1, 4], align="start", gap=2)
    return


if __name__ == "__main__":
    app.run()
