// @odata/client: entity sets, an action, batches as multipart with change sets and as JSON.
import odata from "@odata/client";

const { BASE, TOKEN, COMPANY, RUN } = process.env;
const client = odata.OData.New4({
  serviceEndpoint: `${BASE}/`,
  commonHeaders: { Authorization: `Bearer ${TOKEN}`, "If-Match": "*" },
});
const runs = client.getEntitySet("cloudMigrationStatus");
const companies = client.getEntitySet("cloudMigrationCompanies");
const [company, run] = [odata.Guid.from(COMPANY), odata.Guid.from(RUN)];
const newestFirst = () => client.newOptions().orderby([{ field: "startTime", order: "desc" }]);
const found = { pages: [] };

found.newest = (await runs.query(newestFirst().top(1)))[0].id;
found.filtered = (await runs.query(client.newFilter().property("status").eq("Failed"))).map((row) => row.runId);
found.expanded = (await runs.retrieve(run, client.newOptions().expand("cloudMigrationStatusDetails")))
  .cloudMigrationStatusDetails.map((row) => row.tableName);
for (const total = await runs.count(); found.pages.length < total;) {
  found.pages.push(...(await runs.query(newestFirst().top(5).skip(found.pages.length))).map((row) => row.runId));
}
await companies.update(company, { replicate: true });
found.patched = (await companies.retrieve(company)).replicate;
await runs.action("Microsoft.NAV.refreshStatus", run);
found.batches = [];
for (const send of ["execBatchRequests", "execBatchRequestsJson"]) {
  const answers = await client[send]([
    client.newBatchRequest({ collection: "cloudMigrationStatus", params: client.newOptions().top(2) }),
    client.newBatchRequest({ collection: "cloudMigrationCompanies", id: company, method: "PATCH", entity: { replicate: false } }),
    client.newBatchRequest({ collection: "cloudMigrationCompanies", id: company }),
  ]);
  found.batches.push([answers.map((answer) => answer.status), (await answers[0].json()).value.length, (await answers[2].json()).replicate]);
}
console.log(JSON.stringify(found));
