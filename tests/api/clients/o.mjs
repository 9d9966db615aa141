// o.js (npm: odata): plain resources, pages by their links, a batch as multipart with absolute URLs.
import { o } from "odata";

const { BASE, TOKEN, COMPANY, RUN } = process.env;
const headers = () => new Headers({ Authorization: `Bearer ${TOKEN}`, "Content-Type": "application/json", "If-Match": "*" });
const client = o(`${BASE}/`, {
  headers: headers(),
  referrer: undefined,
  batch: { boundaryPrefix: "batch_", changsetBoundaryPrefix: "changset_", endpoint: "$batch", headers: headers() },
});
const company = `cloudMigrationCompanies(${COMPANY})`;
const found = { pages: [] };

found.newest = (await client.get("cloudMigrationStatus").query({ $orderby: "startTime desc", $top: 1 }))[0].id;
found.filtered = (await client.get("cloudMigrationStatus").query({ $filter: "status eq 'Failed'" })).map((row) => row.runId);
found.expanded = (await client.get(`cloudMigrationStatus(${RUN})`).query({ $expand: "cloudMigrationStatusDetails($select=tableName)" }))
  .cloudMigrationStatusDetails.map((row) => row.tableName);
for (let link = "cloudMigrationStatus"; link;) {
  const page = await (await client.get(link).fetch()).json();
  found.pages.push(...page.value.map((row) => row.runId));
  link = page["@odata.nextLink"];
}
await client.patch(company, { replicate: true }).query();
found.patched = (await client.get(company).query()).replicate;
found.action = (await client.post(`cloudMigrationStatus(${RUN})/Microsoft.NAV.refreshStatus`, {}).query()).status;
const answers = await client.get("cloudMigrationStatus?$top=2").patch(company, { replicate: false }).get(company).batch();
found.batches = [[answers.map((answer) => answer.status), answers[0].body.length, answers[2].body.replicate]];
console.log(JSON.stringify(found));
