"""The routes that answer with data of runs. Ids are looked up, never joined to paths; errors are one JSON sentence."""

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from voxplain.io.run import RunError
from voxplain.maps import Explanation
from voxplain.serve.describing import describe, heatmap, ranked, ranking
from voxplain.serve.jobs import LONGEST, Jobs
from voxplain.serve.library import Library
from voxplain.serve.packing import map_file, sample_file

MOST = 512  # voxels along an axis that a browser is ever sent


def loaded(library: Library, run: str) -> Explanation:
    """The run, or the answer that says why there is none."""
    from fastapi import HTTPException

    if run not in library.ids:
        raise HTTPException(404, "there is no such run; it may have been removed")
    try:
        return library.load(run)
    except (RunError, OSError) as error:
        raise HTTPException(409, str(error)) from error


def api_router(library: Library, jobs: Jobs | None = None, *, paths: bool = False) -> Any:
    """A FastAPI router with /api/...; without `jobs` no route changes anything. `paths` tells where runs lie."""
    from fastapi import APIRouter, HTTPException, Query, Request
    from fastapi.responses import Response, StreamingResponse

    router = APIRouter(prefix="/api")

    def volume(content: bytes, factor: int = 1) -> Response:
        return Response(content, media_type="application/gzip", headers={"x-coarser": str(factor)})

    @router.get("/runs")
    def runs() -> dict[str, Any]:
        found = []
        for name in library.ids:
            where = {"folder": str(library.folder(name))} if paths else {}
            try:
                found.append({"id": name, **library.title(name), **where})
            except RunError as error:
                found.append({"id": name, "error": str(error)})
        return {"runs": found, "generate": jobs.describe() if jobs else None}

    @router.get("/runs/{run}/case")
    def case(run: str) -> dict[str, Any]:
        described = describe(loaded(library, run))
        try:
            made = [{"kind": one.kind, "word": one.word} for one in library.variants(run)]
        except RunError as error:
            raise HTTPException(409, str(error)) from error
        return {"id": run, **described, "variants": made}

    @router.get("/runs/{run}/sample.nii.gz")
    def sample(run: str, limit: int = Query(MOST, ge=16, le=MOST)) -> Response:
        return volume(*sample_file(loaded(library, run).sample, limit))

    @router.get("/runs/{run}/map.nii.gz")
    def one_map(run: str, recipe: str = Query(max_length=200), name: str = Query(max_length=LONGEST)) -> Response:
        try:
            found, facts = heatmap(loaded(library, run), recipe, name)
        except ValueError as error:
            raise HTTPException(404, str(error)) from error
        return volume(map_file(found.values, found.geometry, facts))

    @router.get("/runs/{run}/variants/{number}/{part}.nii.gz")
    def variant(run: str, number: int, part: str, limit: int = Query(MOST, ge=16, le=MOST)) -> Response:
        loaded(library, run)
        try:
            image, difference = library.variant_samples(run, number)
        except (IndexError, ValueError, OSError) as error:
            raise HTTPException(404, f"there is no such variant: {error}") from error
        if part == "image":
            return volume(*sample_file(image, limit))
        if part != "difference":
            raise HTTPException(404, "a variant has an image and a difference")
        facts = {"label": "difference", "recipe": "difference", "sure": True}
        return volume(map_file(np.abs(difference.image[0]), difference.geometry, facts))

    @router.get("/runs/{run}/at")
    def at(run: str, recipe: str = Query(max_length=200), voxel: str = Query(max_length=40)) -> dict[str, Any]:
        explanation = loaded(library, run)
        known(explanation, recipe)
        try:
            index = np.array([[int(each) for each in voxel.split(",")]], float)[:, -explanation.sample.geometry.ndim :]
            world = explanation.sample.geometry.world(index)
        except ValueError as error:
            raise HTTPException(422, "voxel is slice,row,column") from error
        cells = explanation.attributions[recipe].geometry.index(world)
        return {"words": ranked(explanation, recipe, cells)}

    @router.post("/runs/{run}/region")
    async def region(run: str, request: Request, recipe: str = Query(max_length=200)) -> dict[str, Any]:
        """The body is one bit a voxel of the sample, slowest axis first, the highest bit first."""
        explanation, body = loaded(library, run), await request.body()
        known(explanation, recipe)
        shape = explanation.sample.geometry.shape
        if len(body) != -(-int(np.prod(shape)) // 8):
            raise HTTPException(422, f"a region of {shape} is one bit a voxel")
        bits = np.unpackbits(np.frombuffer(body, np.uint8), count=int(np.prod(shape)))
        try:
            return {"words": ranking(explanation, recipe, bits.reshape(shape).astype(bool)), "voxels": int(bits.sum())}
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    def known(explanation: Explanation, recipe: str) -> None:
        if recipe not in explanation.attributions:
            raise HTTPException(404, f"there is no recipe {recipe!r}")

    if jobs is None:
        return router

    @router.post("/generate")
    async def generate(request: Request) -> dict[str, str]:
        try:
            wanted = json.loads(await request.body())
            return {"job": jobs.start(wanted if isinstance(wanted, dict) else {})}
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @router.get("/jobs/{job}")
    async def events(job: str) -> StreamingResponse:
        if job not in jobs.ids:
            raise HTTPException(404, "there is no such job")

        async def lines() -> AsyncIterator[bytes]:
            async for event in jobs.events(job):
                yield f"data: {json.dumps(event)}\n\n".encode()

        return StreamingResponse(lines(), media_type="text/event-stream")

    @router.delete("/jobs/{job}")
    def stop(job: str) -> dict[str, bool]:
        return {"stopped": jobs.stop(job)}

    return router
