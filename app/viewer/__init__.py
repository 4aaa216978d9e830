"""Room of the slide viewer's tiles; nothing is here yet.

`endpoints.router` will answer `/api/v1/analyses/{id}/tiles/{level}/{x}_{y}.jpeg` with tiles of the
ingested slide and of its heatmap, read by ranges through `pipelines.slides`. Above `analyses`,
which says whether a caller may see a slide; it knows no model.
"""
